/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parsers of what a peer writes about addresses: the :authority of a CONNECT and the Forwarded header.
 *
 * Input is untrusted and not terminated. Both are fuzzed (engine/fuzz/fuzz_authority.c).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "endpoint.h"

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' || c == '_';
}

/* Characters of an authority, RFC 3986 3.2: unreserved, sub-delims, and the marks around host and port. */
static bool is_authority(char c)
{
	return is_name(c) || (c && strchr("~!$&'()*+,;=:@[]%", c));
}

/* 1 to 65535, digits only. */
static int parse_port(const char *text, size_t length, uint16_t *ret)
{
	uint32_t port = 0;

	if (!length || length > 5)
		return -EINVAL;
	for (size_t i = 0; i < length; i++) {
		if (!is_digit(text[i]))
			return -EINVAL;
		port = port * 10 + (uint32_t)(text[i] - '0');
	}
	if (!port || port > UINT16_MAX)
		return -EINVAL;
	*ret = (uint16_t)port;
	return 0;
}

static int parse_ip(int family, const char *text, size_t length, uint8_t ret[16])
{
	char copy[INET6_ADDRSTRLEN];

	if (length >= sizeof(copy) || memchr(text, 0, length))
		return -EINVAL;
	memcpy(copy, text, length);
	copy[length] = 0;
	if (family == AF_INET6)
		return inet_pton(AF_INET6, copy, ret) == 1 ? 0 : -EINVAL;
	memset(ret, 0, 10);
	ret[10] = 0xff;
	ret[11] = 0xff;
	return inet_pton(AF_INET, copy, ret + 12) == 1 ? 0 : -EINVAL;
}

static enum cv_authority parse_bracketed(const char *text, size_t length, struct cv_endpoint *ret)
{
	const char *close = memchr(text, ']', length);
	size_t host;

	if (!close)
		return CV_AUTHORITY_BAD;
	host = (size_t)(close - text) - 1;
	if (host + 2 >= length || close[1] != ':' || parse_port(close + 2, length - host - 3, &ret->port))
		return CV_AUTHORITY_BAD;
	if (parse_ip(AF_INET6, text + 1, host, ret->ip))
		return CV_AUTHORITY_BAD;
	return cv_endpoint_is_v4(ret) ? CV_AUTHORITY_MAPPED : CV_AUTHORITY_IP;
}

enum cv_authority cv_authority_parse(const char *text, size_t length, struct cv_endpoint *ret)
{
	const char *colon;
	size_t host;

	for (size_t i = 0; i < length; i++)
		if (!is_authority(text[i]))
			return CV_AUTHORITY_MALFORMED;
	if (length && text[0] == '[')
		return parse_bracketed(text, length, ret);
	colon = length ? memchr(text, ':', length) : NULL;
	if (!colon || colon == text)
		return CV_AUTHORITY_BAD;
	host = (size_t)(colon - text);
	if (parse_port(colon + 1, length - host - 1, &ret->port))
		return CV_AUTHORITY_BAD;
	if (!parse_ip(AF_INET, text, host, ret->ip))
		return CV_AUTHORITY_IP;
	for (size_t i = 0; i < host; i++)
		if (!is_name(text[i]))
			return CV_AUTHORITY_BAD;
	return CV_AUTHORITY_HOST;
}

static bool is_for(const char *text)
{
	return (text[0] | 0x20) == 'f' && (text[1] | 0x20) == 'o' && (text[2] | 0x20) == 'r' && text[3] == '=';
}

int cv_forwarded_parse(const char *text, size_t length, struct cv_endpoint *ret)
{
	const char *end = text + length;
	bool fresh = true; /* at the start of a parameter */

	for (const char *at = text; end - at > 4; at++) {
		if (fresh && is_for(at)) {
			const char *value = at + 4;
			const char *close = *value == '"' ? memchr(value + 1, '"', (size_t)(end - value) - 1) : NULL;
			struct cv_endpoint parsed;

			if (!close)
				return -EINVAL;
			value++;
			if (cv_authority_parse(value, (size_t)(close - value), &parsed) != CV_AUTHORITY_IP)
				return -EINVAL;
			*ret = parsed;
			return 0;
		}
		fresh = *at == ';' || *at == ',' || (fresh && *at == ' ');
	}
	return -EINVAL;
}
