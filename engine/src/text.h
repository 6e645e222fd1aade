/* SPDX-License-Identifier: Apache-2.0 */
/* A string that several objects of one worker share. */
#ifndef CULVERT_TEXT_H
#define CULVERT_TEXT_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct cv_text {
	uint32_t refs;
	char s[];
};

static inline struct cv_text *cv_text_create(const char *s)
{
	size_t size = strlen(s) + 1;
	struct cv_text *text = malloc(sizeof(*text) + size);

	if (text) {
		text->refs = 1;
		memcpy(text->s, s, size);
	}
	return text;
}

static inline struct cv_text *cv_text_acquire(struct cv_text *text)
{
	if (text)
		text->refs++;
	return text;
}

static inline void cv_text_release(struct cv_text *text)
{
	if (text && !--text->refs)
		free(text);
}

#endif
