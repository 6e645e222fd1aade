/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as :authority, Forwarded header and SPIFFE id: what parses prints and parses back to the same. */
#include <stdlib.h>
#include <string.h>

#include "endpoint.h"
#include "identity.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const struct cv_endpoint *endpoint)
{
	char text[CV_ENDPOINT_TEXT];
	struct cv_endpoint again;

	cv_endpoint_print(endpoint, text);
	if (cv_authority_parse(text, strlen(text), &again) != CV_AUTHORITY_IP || !cv_endpoint_same(endpoint, &again))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* Exactly as long as the input, so that a read beyond it is seen. */
	char *text = malloc(size ? size : 1);
	struct cv_endpoint endpoint = {0};

	if (!text)
		return 0;
	memcpy(text, data, size);
	if (cv_authority_parse(text, size, &endpoint) == CV_AUTHORITY_IP)
		check_round_trip(&endpoint);
	if (!cv_forwarded_parse(text, size, &endpoint))
		check_round_trip(&endpoint);
	if (cv_identity_trust_domain(text, size) > size)
		abort();
	free(text);
	return 0;
}
