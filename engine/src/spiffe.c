/* SPDX-License-Identifier: Apache-2.0 */
/* The one form of SPIFFE id that the mesh knows: spiffe://<trust domain>/ns/<namespace>/sa/<service account>. */
#include <string.h>

#include "identity.h"

/* Length of the segment at `text`, up to '/' or the end; 0 when it is empty or holds what no name may hold. */
static size_t segment(const char *text, const char *end)
{
	const char *at = text;

	for (; at < end && *at != '/'; at++)
		if (*at <= ' ' || *at == 0x7f || *at == '?' || *at == '#' || *at == '@' || *at == '%' || *at < 0)
			return 0;
	return (size_t)(at - text);
}

static const char *expect(const char *at, const char *end, const char *word)
{
	size_t length = strlen(word);

	if ((size_t)(end - at) < length || memcmp(at, word, length))
		return NULL;
	return at + length;
}

size_t cv_identity_trust_domain(const char *text, size_t length)
{
	static const char *const words[] = {"spiffe://", "/ns/", "/sa/"};
	const char *end = text + length;
	const char *at = text;
	size_t domain = 0;

	for (int i = 0; i < 3; i++) {
		size_t n;

		at = expect(at, end, words[i]);
		if (!at)
			return 0;
		n = segment(at, end);
		if (!n)
			return 0;
		at += n;
		if (!i)
			domain = (size_t)(at - text) + 1;
	}
	return at == end ? domain : 0;
}
