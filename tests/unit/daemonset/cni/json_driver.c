// SPDX-License-Identifier: Apache-2.0
/* What json.c says of its input: valid or not, the text of member "k", the texts in array "a", and all of it quoted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"

static void print(const char *label, const char *text)
{
	char quoted[6 * 4096 + 2];
	size_t length = json_quote(text, quoted, sizeof(quoted));

	printf("%s %.*s\n", label, (int)length, quoted);
}

static void show(struct slice document)
{
	struct slice value, item;
	const char *cursor = NULL;
	char text[4096];

	if (json_member(document, "k", &value) && json_text(value, text, sizeof(text)))
		print("k", text);
	if (!json_member(document, "a", &value))
		return;
	while (json_element(value, &cursor, &item))
		if (json_text(item, text, sizeof(text)))
			print("a", text);
}

static void judge(const char *bytes, size_t length)
{
	/* Exactly as long as the input, so that a read beyond it is seen. */
	char *exact = malloc(length ? length : 1);
	struct slice document = {exact, length};

	if (!exact)
		abort();
	memcpy(exact, bytes, length);
	printf("%s\n", json_is_valid(document) ? "valid" : "invalid");
	if (json_is_valid(document))
		show(document);
	printf(".\n");
	fflush(stdout);
	free(exact);
}

/* Many documents in one run, each behind its length as four bytes. */
int main(void)
{
	static char buffer[1 << 20];
	unsigned int length;

	while (fread(&length, sizeof(length), 1, stdin) == 1) {
		if (length > sizeof(buffer) || fread(buffer, 1, length, stdin) != length)
			return 2;
		judge(buffer, length);
	}
	return 0;
}
