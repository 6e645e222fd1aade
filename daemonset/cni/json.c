// SPDX-License-Identifier: Apache-2.0
/*
 * As much JSON as a CNI plugin needs: is it valid, where is a member, what does a string say. Nothing is allocated and
 * nothing is kept: values are slices of the text. What is not understood is no value.
 */
#include "json.h"

#include <stdint.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

struct reader {
	const char *at;
	const char *end;
};

static bool read_value(struct reader *from, int depth);

static int peek(const struct reader *from)
{
	return from->at < from->end ? (unsigned char)*from->at : -1;
}

static void skip_space(struct reader *from)
{
	while (from->at < from->end && memchr(" \t\r\n", *from->at, 4))
		from->at++;
}

static bool read_char(struct reader *from, char wanted)
{
	if (peek(from) != (unsigned char)wanted)
		return false;
	from->at++;
	return true;
}

static bool read_word(struct reader *from, const char *word)
{
	size_t length = strlen(word);

	if ((size_t)(from->end - from->at) < length || memcmp(from->at, word, length))
		return false;
	from->at += length;
	return true;
}

static int hex(int digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

static bool read_unit(struct reader *from, uint32_t *ret)
{
	*ret = 0;
	for (int i = 0; i < 4; i++) {
		int digit = hex(peek(from));

		if (digit < 0)
			return false;
		*ret = *ret << 4 | (uint32_t)digit;
		from->at++;
	}
	return true;
}

static bool read_string(struct reader *from)
{
	uint32_t unit;

	if (!read_char(from, '"'))
		return false;
	for (int next; (next = peek(from)) != '"';) {
		if (next < 0x20)
			return false; /* a control character, or the end */
		from->at++;
		if (next != '\\')
			continue;
		next = peek(from);
		if (next <= 0 || !strchr("\"\\/bfnrtu", next))
			return false;
		from->at++;
		if (next == 'u' && !read_unit(from, &unit))
			return false;
	}
	from->at++;
	return true;
}

static bool read_digits(struct reader *from)
{
	const char *start = from->at;

	while (peek(from) >= '0' && peek(from) <= '9')
		from->at++;
	return from->at > start;
}

static bool read_number(struct reader *from)
{
	(void)read_char(from, '-');
	if (!read_char(from, '0') && !read_digits(from))
		return false;
	if (read_char(from, '.') && !read_digits(from))
		return false;
	if (read_char(from, 'e') || read_char(from, 'E')) {
		if (!read_char(from, '+'))
			(void)read_char(from, '-');
		return read_digits(from);
	}
	return true;
}

static bool read_list(struct reader *from, char end, int depth)
{
	from->at++;
	skip_space(from);
	if (read_char(from, end))
		return true;
	do {
		skip_space(from);
		if (end == '}') {
			if (!read_string(from))
				return false;
			skip_space(from);
			if (!read_char(from, ':'))
				return false;
		}
		if (!read_value(from, depth + 1))
			return false;
		skip_space(from);
	} while (read_char(from, ','));
	return read_char(from, end);
}

static bool read_value(struct reader *from, int depth)
{
	if (depth > MAX_DEPTH)
		return false;
	skip_space(from);
	switch (peek(from)) {
	case '{':
		return read_list(from, '}', depth);
	case '[':
		return read_list(from, ']', depth);
	case '"':
		return read_string(from);
	case 't':
		return read_word(from, "true");
	case 'f':
		return read_word(from, "false");
	case 'n':
		return read_word(from, "null");
	default:
		return read_number(from);
	}
}

bool json_is_valid(struct slice text)
{
	struct reader from = {text.at, text.at + text.length};

	if (!read_value(&from, 0))
		return false;
	skip_space(&from);
	return from.at == from.end;
}

static struct slice between(const char *start, const char *end)
{
	return (struct slice){start, (size_t)(end - start)};
}

static bool is_named(struct slice key, const char *name)
{
	char text[128];

	return json_text(key, text, sizeof(text)) && !strcmp(text, name);
}

bool json_member(struct slice object, const char *name, struct slice *ret)
{
	struct reader from = {object.at, object.at + object.length};
	bool found = false;

	skip_space(&from);
	if (!read_char(&from, '{'))
		return false;
	for (;;) {
		const char *start;
		struct slice key;

		skip_space(&from);
		start = from.at;
		if (!read_string(&from))
			return found; /* the end of the object */
		key = between(start, from.at);
		skip_space(&from);
		if (!read_char(&from, ':'))
			return found;
		skip_space(&from);
		start = from.at;
		if (!read_value(&from, 0))
			return found;
		if (is_named(key, name)) {
			*ret = between(start, from.at);
			found = true;
		}
		skip_space(&from);
		if (!read_char(&from, ','))
			return found;
	}
}

bool json_element(struct slice array, const char **cursor, struct slice *ret)
{
	struct reader from = {*cursor ? *cursor : array.at, array.at + array.length};
	const char *start;

	skip_space(&from);
	if (!read_char(&from, *cursor ? ',' : '['))
		return false;
	skip_space(&from);
	start = from.at;
	if (!read_value(&from, 0))
		return false;
	*ret = between(start, from.at);
	*cursor = from.at;
	return true;
}

/* The character of an escape at `from`, surrogate pairs put together; -1 when it is none. */
static int32_t read_escape(struct reader *from)
{
	static const char names[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
	const char *name;
	uint32_t unit, low;

	if (read_char(from, 'u')) {
		if (!read_unit(from, &unit))
			return -1;
		if (unit < 0xd800 || unit > 0xdfff)
			return (int32_t)unit;
		if (unit > 0xdbff || !read_word(from, "\\u") || !read_unit(from, &low) || low < 0xdc00 || low > 0xdfff)
			return -1;
		return (int32_t)(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
	}
	name = peek(from) > 0 ? strchr(names, peek(from)) : NULL;
	if (!name)
		return -1;
	from->at++;
	return meant[name - names];
}

static size_t utf8(uint32_t character, char *ret)
{
	if (character < 0x80) {
		ret[0] = (char)character;
		return 1;
	}
	if (character < 0x800) {
		ret[0] = (char)(0xc0 | character >> 6);
		ret[1] = (char)(0x80 | (character & 0x3f));
		return 2;
	}
	if (character < 0x10000) {
		ret[0] = (char)(0xe0 | character >> 12);
		ret[1] = (char)(0x80 | (character >> 6 & 0x3f));
		ret[2] = (char)(0x80 | (character & 0x3f));
		return 3;
	}
	ret[0] = (char)(0xf0 | character >> 18);
	ret[1] = (char)(0x80 | (character >> 12 & 0x3f));
	ret[2] = (char)(0x80 | (character >> 6 & 0x3f));
	ret[3] = (char)(0x80 | (character & 0x3f));
	return 4;
}

bool json_text(struct slice value, char *ret, size_t room)
{
	struct reader from = {value.at, value.at + value.length};
	size_t length = 0;

	if (!read_char(&from, '"'))
		return false;
	while (peek(&from) >= 0 && peek(&from) != '"') {
		char bytes[4] = {*from.at++};
		size_t count = 1;

		if (bytes[0] == '\\') {
			int32_t character = read_escape(&from);

			if (character <= 0)
				return false;
			count = utf8((uint32_t)character, bytes);
		}
		if (!bytes[0] || length + count >= room)
			return false;
		memcpy(ret + length, bytes, count);
		length += count;
	}
	if (!read_char(&from, '"') || from.at != from.end || !room)
		return false;
	ret[length] = '\0';
	return true;
}

static void put(char *ret, size_t room, size_t *length, const char *bytes, size_t count)
{
	if (*length + count <= room)
		memcpy(ret + *length, bytes, count);
	*length += count;
}

size_t json_quote(const char *text, char *ret, size_t room)
{
	static const char digits[] = "0123456789abcdef";
	size_t length = 0;

	put(ret, room, &length, "\"", 1);
	for (; *text; text++) {
		unsigned char byte = (unsigned char)*text;

		if (byte < 0x20 || byte == '"' || byte == '\\') {
			char escape[] = {'\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15]};

			put(ret, room, &length, escape, sizeof(escape));
		} else {
			put(ret, room, &length, text, 1);
		}
	}
	put(ret, room, &length, "\"", 1);
	return length;
}
