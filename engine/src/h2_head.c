/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Header fields of CONNECT requests and answers, checked by RFC 9113 section 8.
 *
 * nghttp2's own checks are off: it would reset what HBONE answers with a status. Only what decides is kept.
 */
#include <nghttp2/nghttp2.h>
#include <string.h>

#include "endpoint.h"
#include "h2.h"

struct text {
	const uint8_t *bytes;
	size_t length;
};

static bool is(struct text text, const char *word)
{
	return text.length == strlen(word) && !memcmp(text.bytes, word, text.length);
}

/* A field that may stand once. */
static void once(struct cv_head *head, bool *flag)
{
	if (*flag)
		head->malformed = true;
	*flag = true;
}

static void take_authority(struct cv_head *head, struct text value)
{
	once(head, &head->has_authority);
	if (value.length >= sizeof(head->authority)) {
		head->authority_too_long = true;
		return;
	}
	memcpy(head->authority, value.bytes, value.length);
	head->authority_length = (uint16_t)value.length;
}

static void take_status(struct cv_head *head, struct text value)
{
	once(head, &head->has_status);
	if (value.length != 3) {
		head->malformed = true;
		return;
	}
	for (size_t i = 0; i < 3; i++) {
		if (value.bytes[i] < '0' || value.bytes[i] > '9')
			head->malformed = true;
		head->status = (uint16_t)(head->status * 10 + (value.bytes[i] - '0'));
	}
}

static void take_pseudo(struct cv_head *head, struct text name, struct text value)
{
	if (head->regular_seen)
		head->malformed = true;
	if (is(name, ":method")) {
		once(head, &head->has_method);
		head->is_connect = is(value, "CONNECT");
	} else if (is(name, ":authority")) {
		take_authority(head, value);
	} else if (is(name, ":status")) {
		take_status(head, value);
	} else if (is(name, ":path") || is(name, ":scheme")) {
		head->has_path_or_scheme = true;
	} else if (is(name, ":protocol")) {
		head->has_protocol = true;
	} else {
		head->malformed = true;
	}
}

static bool is_connection_specific(struct text name, struct text value)
{
	return is(name, "connection") || is(name, "keep-alive") || is(name, "proxy-connection") ||
	       is(name, "transfer-encoding") || is(name, "upgrade") || (is(name, "te") && !is(value, "trailers"));
}

static void take_regular(struct cv_head *head, struct text name, struct text value)
{
	head->regular_seen = true;
	if (!nghttp2_check_header_name(name.bytes, name.length) || is_connection_specific(name, value))
		head->malformed = true;
	if (is(name, "forwarded") && !head->has_forwarded)
		head->has_forwarded = !cv_forwarded_parse((const char *)value.bytes, value.length, &head->forwarded);
}

void cv_head_field(struct cv_head *head, const uint8_t *name, size_t name_length, const uint8_t *value,
		   size_t value_length, uint32_t limit)
{
	struct text field = {name, name_length};
	struct text content = {value, value_length};

	head->size += (uint32_t)(name_length + value_length + 32);
	if (head->size > limit)
		head->too_large = true;
	if (!nghttp2_check_header_value(value, value_length) && !(name_length && name[0] == ':'))
		head->malformed = true;
	if (head->too_large)
		return;
	if (name_length && name[0] == ':')
		take_pseudo(head, field, content);
	else
		take_regular(head, field, content);
}

bool cv_head_is_valid_request(const struct cv_head *head)
{
	struct cv_endpoint unused;

	if (head->malformed || !head->has_method || head->has_status)
		return false;
	if (!head->is_connect)
		return true; /* a 400 is the answer */
	if (head->has_path_or_scheme || head->has_protocol)
		return false;
	return head->authority_too_long ||
	       cv_authority_parse(head->authority, head->authority_length, &unused) != CV_AUTHORITY_MALFORMED;
}
