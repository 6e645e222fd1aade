/* SPDX-License-Identifier: Apache-2.0 */
/* Readers advance a span and refuse what does not fit in it, so no size in a program is ever trusted. */
#include <errno.h>
#include <string.h>
#include "policy.h"

struct span {
	const uint8_t *at;
	size_t left;
};

struct field {
	uint8_t kind;
	struct span values;
};

static const uint8_t MAPPED[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
static const char SCHEME[] = "spiffe://";

/* ---------------------------------------------------------------- reading */

static bool take(struct span *from, size_t length, struct span *ret)
{
	if (from->left < length)
		return false;
	*ret = (struct span){from->at, length};
	from->at += length;
	from->left -= length;
	return true;
}

static bool take_number(struct span *from, size_t width, uint32_t *ret)
{
	struct span bytes;

	if (!take(from, width, &bytes))
		return false;
	for (*ret = 0; bytes.left; bytes.left--)
		*ret = *ret << 8 | *bytes.at++;
	return true;
}

static bool take_node(struct span *from, struct span *ret)
{
	uint32_t size;

	return take_number(from, 4, &size) && take(from, size, ret);
}

static bool take_text(struct span *from, struct span *ret)
{
	uint32_t length;

	return take_number(from, 2, &length) && take(from, length, ret);
}

static bool take_field(struct span *from, struct field *ret)
{
	uint32_t kind;

	if (!take_node(from, &ret->values) || !take_number(&ret->values, 1, &kind))
		return false;
	ret->kind = (uint8_t)kind;
	return kind > 0 && kind < CV_POLICY_FIELDS && ret->values.left > 0;
}

/* -------------------------------------------------------------- one value */

static bool text_equals(const struct cv_text *text, const struct span *value)
{
	return text->length == value->left && !memcmp(text->bytes, value->at, value->left);
}

static bool string_matches(const struct cv_text *text, uint32_t how, const struct span *value)
{
	if (!text->bytes)
		return false;
	switch (how) {
	case CV_POLICY_EXACT:
		return text_equals(text, value);
	case CV_POLICY_PREFIX:
		return text->length >= value->left && !memcmp(text->bytes, value->at, value->left);
	case CV_POLICY_SUFFIX:
		return text->length >= value->left &&
		       !memcmp(text->bytes + text->length - value->left, value->at, value->left);
	default:
		return how == CV_POLICY_PRESENCE;
	}
}

static bool is_mapped(const uint8_t ip[16])
{
	return !memcmp(ip, MAPPED, sizeof(MAPPED));
}

/* An IPv6 range never holds an IPv4 address, not even ::/0. */
static bool range_holds(const uint8_t *range, uint32_t length, const uint8_t ip[16])
{
	bool is_ipv4_range = length >= 96 && is_mapped(range);
	uint32_t whole = length / 8, rest = length % 8;

	if (is_ipv4_range != is_mapped(ip) || memcmp(range, ip, whole))
		return false;
	return !rest || !((range[whole] ^ ip[whole]) >> (8 - rest));
}

/* Each reads one value and says in `ret` whether it matches; false when malformed. */

static bool read_string(struct span *values, const struct cv_text *text, bool *ret)
{
	struct span value;
	uint32_t how;

	if (!take_number(values, 1, &how) || !take_text(values, &value))
		return false;
	*ret = string_matches(text, how, &value);
	return how < CV_POLICY_PRESENCE || (how == CV_POLICY_PRESENCE && !value.left);
}

static bool read_address(struct span *values, const uint8_t ip[16], bool *ret)
{
	struct span range;
	uint32_t length;

	if (!take(values, 16, &range) || !take_number(values, 1, &length) || length > 128)
		return false;
	*ret = range_holds(range.at, length, ip);
	return true;
}

static bool read_port(struct span *values, uint16_t port, bool *ret)
{
	uint32_t number;

	if (!take_number(values, 2, &number))
		return false;
	*ret = number == port;
	return true;
}

static bool read_account(struct span *values, const struct cv_policy_input *input, bool *ret)
{
	struct span namespace_, account;

	if (!take_text(values, &namespace_) || !take_text(values, &account))
		return false;
	*ret = input->principal.bytes && text_equals(&input->namespace_, &namespace_) &&
	       text_equals(&input->service_account, &account);
	return true;
}

static bool read_value(struct field *field, const struct cv_policy_input *input, bool *ret)
{
	switch (field->kind) {
	case CV_POLICY_NAMESPACES:
	case CV_POLICY_NOT_NAMESPACES:
		return read_string(&field->values, &input->namespace_, ret);
	case CV_POLICY_PRINCIPALS:
	case CV_POLICY_NOT_PRINCIPALS:
		return read_string(&field->values, &input->principal, ret);
	case CV_POLICY_SOURCE_IPS:
	case CV_POLICY_NOT_SOURCE_IPS:
		return read_address(&field->values, input->source_ip, ret);
	case CV_POLICY_DESTINATION_IPS:
	case CV_POLICY_NOT_DESTINATION_IPS:
		return read_address(&field->values, input->destination->ip, ret);
	case CV_POLICY_DESTINATION_PORTS:
	case CV_POLICY_NOT_DESTINATION_PORTS:
		return read_port(&field->values, input->destination->port, ret);
	case CV_POLICY_SERVICE_ACCOUNTS:
	case CV_POLICY_NOT_SERVICE_ACCOUNTS:
		return read_account(&field->values, input, ret);
	default:
		return false;
	}
}

/* ------------------------------------------------------------- evaluation */

static bool field_matches(struct field *field, const struct cv_policy_input *input)
{
	bool is_negated = field->kind % 2 == 0;
	bool hit = false;

	while (!hit && field->values.left)
		if (!read_value(field, input, &hit))
			return false;
	return hit != is_negated;
}

static bool match_matches(struct span match, const struct cv_policy_input *input)
{
	struct field field;

	if (!match.left)
		return false;
	while (match.left)
		if (!take_field(&match, &field) || !field_matches(&field, input))
			return false;
	return true;
}

static bool clause_matches(struct span clause, const struct cv_policy_input *input)
{
	struct span match;

	if (!clause.left)
		return true;
	while (take_node(&clause, &match))
		if (match_matches(match, input))
			return true;
	return false;
}

static bool rule_matches(struct span rule, const struct cv_policy_input *input)
{
	struct span clause;

	while (rule.left)
		if (!take_node(&rule, &clause) || !clause_matches(clause, input))
			return false;
	return true;
}

bool cv_policy_matches(const uint8_t *program, size_t length, const struct cv_policy_input *input)
{
	struct span rules = {program, length};
	struct span rule;

	while (take_node(&rules, &rule))
		if (rule_matches(rule, input))
			return true;
	return false;
}

/* --------------------------------------------------------------- checking */

static bool check_match(struct span match)
{
	static const struct cv_endpoint nowhere;
	const struct cv_policy_input input = {.source_ip = nowhere.ip, .destination = &nowhere};
	struct field field;
	uint8_t last = 0;
	bool hit;

	while (match.left) {
		if (!take_field(&match, &field) || field.kind <= last)
			return false;
		last = field.kind;
		while (field.values.left)
			if (!read_value(&field, &input, &hit))
				return false;
	}
	return true;
}

static bool check_clause(struct span clause)
{
	struct span match;

	while (clause.left)
		if (!take_node(&clause, &match) || !check_match(match))
			return false;
	return true;
}

static bool check_rule(struct span rule)
{
	struct span clause;

	while (rule.left)
		if (!take_node(&rule, &clause) || !check_clause(clause))
			return false;
	return true;
}

int cv_policy_check(const uint8_t *program, size_t length)
{
	struct span rules = {program, length};
	struct span rule;

	if (!program && length)
		return -EINVAL;
	while (rules.left)
		if (!take_node(&rules, &rule) || !check_rule(rule))
			return -EINVAL;
	return 0;
}

/* ------------------------------------------------------------------ input */

/* A non-empty run up to `end`, or up to the end of the text when `end` is NUL. */
static bool take_segment(const char **at, char end, struct cv_text *ret)
{
	*ret = (struct cv_text){*at, strcspn(*at, "/")};
	*at += ret->length;
	return ret->length && **at == end;
}

static bool take_word(const char **at, const char *word)
{
	size_t length = strlen(word);

	if (strncmp(*at, word, length))
		return false;
	*at += length;
	return true;
}

void cv_policy_input_init(const struct cv_peer *peer, const struct cv_endpoint *destination,
			  struct cv_policy_input *ret)
{
	const char *at = peer->identity ? peer->identity : "";
	struct cv_text trust_domain, namespace_, account;

	*ret = (struct cv_policy_input){.source_ip = peer->ip, .destination = destination};
	if (!take_word(&at, SCHEME) || !take_segment(&at, '/', &trust_domain) || !take_word(&at, "/ns/") ||
	    !take_segment(&at, '/', &namespace_) || !take_word(&at, "/sa/") || !take_segment(&at, '\0', &account))
		return;
	ret->principal = (struct cv_text){trust_domain.bytes, strlen(trust_domain.bytes)};
	ret->namespace_ = namespace_;
	ret->service_account = account;
}
