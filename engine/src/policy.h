/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of one AuthorizationPolicy as bytes, and their evaluation.
 *
 * A node is a 32-bit size and that many bytes; numbers are in network order. A program is nodes all the way down:
 *
 *   program  rule*       matches if any rule does: an empty program never matches
 *   rule     clause*     matches if all clauses do: an empty rule always matches
 *   clause   match*      matches if any match does: an empty clause always matches
 *   match    field*      matches if all fields do: an empty match never matches
 *   field    u8 kind, value*   at least one value; kinds ascend within a match, each at most once
 *
 * A value by kind (enum cv_policy_field, the numbers of the wire's Match):
 *   string   u8 how (enum cv_policy_string), u16 length, bytes; for principals without `spiffe://`
 *   address  16 bytes, u8 prefix length; IPv4 in its mapped form with a length of at least 96
 *   port     u16
 *   account  u16 length, namespace, u16 length, service account
 *
 * A field of an odd kind matches if any value does, one of an even kind (`not_…`) if none does.
 */
#ifndef CULVERT_POLICY_H
#define CULVERT_POLICY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "border.h"

enum cv_policy_field {
	CV_POLICY_NAMESPACES = 1,
	CV_POLICY_NOT_NAMESPACES,
	CV_POLICY_PRINCIPALS,
	CV_POLICY_NOT_PRINCIPALS,
	CV_POLICY_SOURCE_IPS,
	CV_POLICY_NOT_SOURCE_IPS,
	CV_POLICY_DESTINATION_IPS,
	CV_POLICY_NOT_DESTINATION_IPS,
	CV_POLICY_DESTINATION_PORTS,
	CV_POLICY_NOT_DESTINATION_PORTS,
	CV_POLICY_SERVICE_ACCOUNTS,
	CV_POLICY_NOT_SERVICE_ACCOUNTS,
	CV_POLICY_FIELDS,
};

enum cv_policy_string {
	CV_POLICY_EXACT,
	CV_POLICY_PREFIX,
	CV_POLICY_SUFFIX,
	CV_POLICY_PRESENCE, /* length 0: any value, but not none */
	CV_POLICY_STRINGS,
};

struct cv_text {
	const char *bytes; /* NULL: there is none */
	size_t length;
};

/* A connection as policies see it. Without an authenticated peer the three texts are none. */
struct cv_policy_input {
	struct cv_text principal; /* <trust domain>/ns/<namespace>/sa/<service account> */
	struct cv_text namespace_;
	struct cv_text service_account;
	const uint8_t *source_ip;
	const struct cv_endpoint *destination;
};

void cv_policy_input_init(const struct cv_peer *peer, const struct cv_endpoint *destination,
			  struct cv_policy_input *ret);

int cv_policy_check(const uint8_t *program, size_t length); /* -EINVAL when malformed */
/* Only for a program that checks; a malformed one never matches. */
bool cv_policy_matches(const uint8_t *program, size_t length, const struct cv_policy_input *input);

#endif
