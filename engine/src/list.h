/* SPDX-License-Identifier: Apache-2.0 */
/* Doubly linked lists inside the objects that they link. An unlinked entry points at itself, so unlinking twice is
 * safe. */
#ifndef CULVERT_LIST_H
#define CULVERT_LIST_H
#include <stdbool.h>
#include <stddef.h>

struct cv_list {
	struct cv_list *next;
	struct cv_list *prev;
};

#define cv_container(pointer, type, member) ((type *)(void *)(&((char *)(pointer))[-(ptrdiff_t)offsetof(type, member)]))

static inline void cv_list_init(struct cv_list *list)
{
	list->next = list;
	list->prev = list;
}

static inline bool cv_list_empty(const struct cv_list *list)
{
	return list->next == list;
}

static inline void cv_list_append(struct cv_list *list, struct cv_list *entry)
{
	entry->prev = list->prev;
	entry->next = list;
	list->prev->next = entry;
	list->prev = entry;
}

static inline void cv_list_remove(struct cv_list *entry)
{
	entry->prev->next = entry->next;
	entry->next->prev = entry->prev;
	cv_list_init(entry);
}

/* Moves everything from `from` to the empty list `to`. */
static inline void cv_list_take(struct cv_list *to, struct cv_list *from)
{
	cv_list_init(to);
	if (cv_list_empty(from))
		return;
	*to = *from;
	to->next->prev = to;
	to->prev->next = to;
	cv_list_init(from);
}

#define cv_list_each(entry, list) for (struct cv_list *entry = (list)->next; entry != (list); entry = entry->next)

/* The current entry may be removed; others must stay. */
#define cv_list_each_safe(entry, list)                                                                                 \
	for (struct cv_list *entry = (list)->next, *entry##_next = entry->next; entry != (list);                       \
	     entry = entry##_next, entry##_next = entry->next)

#endif
