/* SPDX-License-Identifier: Apache-2.0 */
#ifndef CULVERT_CNI_JSON_H
#define CULVERT_CNI_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* A part of a document; not terminated. */
struct slice {
	const char *at;
	size_t length;
};

/* Whether the text is one JSON value and nothing else, at most 64 levels deep. */
bool json_is_valid(struct slice text);

/* The value of an object's member, the last one of that name. The object must be valid. */
bool json_member(struct slice object, const char *name, struct slice *ret);

/* The next element of an array; `*cursor` is NULL before the first. The array must be valid. */
bool json_element(struct slice array, const char **cursor, struct slice *ret);

/* The text of a string value, terminated; false when it is none, does not fit or has a NUL in it. */
bool json_text(struct slice value, char *ret, size_t room);

/* Write a text as a JSON string; how many bytes that takes, beyond `room` when it did not fit. */
size_t json_quote(const char *text, char *ret, size_t room);

#endif
