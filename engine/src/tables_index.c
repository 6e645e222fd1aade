/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The number of buckets grows with the entries, so that copying an index of 10,000 entries touches a few hundred
 * buckets and looking one up scans a few cache lines of hashes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "tables_index.h"

enum {
	FIRST_BUCKETS = 16,
	ENTRIES_PER_BUCKET = 64, /* average at which the number of buckets doubles */
};

/* Owns a reference on each of its objects. `reserved` places are promised to inserts. */
struct cv_bucket {
	atomic_uint refs;
	uint32_t count;
	uint32_t reserved;
	uint32_t room;
	struct cv_object **objects; /* behind the hashes, in the same block */
	uint32_t hashes[];
};

uint32_t cv_index_hash(const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	uint64_t hash = 0xcbf29ce484222325; /* FNV-1a, then MurmurHash3's finaliser so that low bits are good too */

	while (length--)
		hash = (hash ^ *at++) * 0x100000001b3;
	hash ^= hash >> 33;
	hash *= 0xff51afd7ed558ccd;
	hash ^= hash >> 33;
	return (uint32_t)hash;
}

static struct cv_bucket *bucket_create(uint32_t room)
{
	struct cv_bucket *bucket;

	room = (room + 3) & ~3U; /* keeps the pointers behind the hashes aligned */
	bucket = malloc(sizeof(*bucket) + room * (sizeof(bucket->hashes[0]) + sizeof(bucket->objects[0])));
	if (!bucket)
		return NULL;
	atomic_init(&bucket->refs, 1);
	bucket->count = 0;
	bucket->reserved = 0;
	bucket->room = room;
	bucket->objects = (struct cv_object **)(bucket->hashes + room);
	return bucket;
}

static void bucket_release(struct cv_bucket *bucket)
{
	uint32_t i;

	if (!bucket || atomic_fetch_sub_explicit(&bucket->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (i = 0; i < bucket->count; i++)
		cv_objects_release(bucket->objects[i]);
	free(bucket);
}

static void bucket_append(struct cv_bucket *bucket, uint32_t hash, struct cv_object *object)
{
	bucket->hashes[bucket->count] = hash;
	bucket->objects[bucket->count++] = cv_objects_acquire(object);
}

int cv_index_init(struct cv_index *index)
{
	index->buckets = calloc(FIRST_BUCKETS, sizeof(struct cv_bucket *));
	if (!index->buckets)
		return -ENOMEM;
	index->mask = FIRST_BUCKETS - 1;
	index->count = 0;
	return 0;
}

void cv_index_deinit(struct cv_index *index)
{
	uint32_t i;

	if (!index->buckets)
		return;
	for (i = 0; i <= index->mask; i++)
		bucket_release(index->buckets[i]);
	free(index->buckets);
	index->buckets = NULL;
}

int cv_index_copy(const struct cv_index *from, struct cv_index *ret)
{
	uint32_t i;

	*ret = *from;
	ret->buckets = malloc(((size_t)from->mask + 1) * sizeof(struct cv_bucket *));
	if (!ret->buckets)
		return -ENOMEM;
	for (i = 0; i <= from->mask; i++) {
		ret->buckets[i] = from->buckets[i];
		if (ret->buckets[i])
			atomic_fetch_add_explicit(&ret->buckets[i]->refs, 1, memory_order_relaxed);
	}
	return 0;
}

/* Fills an index of twice the buckets; each may be as large as the bucket that it splits from. */
static int split(const struct cv_index *from, struct cv_index *to)
{
	struct cv_bucket *bucket, **target;
	uint32_t i, j;

	for (i = 0; i <= from->mask; i++) {
		bucket = from->buckets[i];
		for (j = 0; bucket && j < bucket->count; j++) {
			target = &to->buckets[bucket->hashes[j] & to->mask];
			if (!*target)
				*target = bucket_create(bucket->count);
			if (!*target)
				return -ENOMEM;
			bucket_append(*target, bucket->hashes[j], bucket->objects[j]);
		}
	}
	return 0;
}

void cv_index_grow(struct cv_index *index)
{
	struct cv_index grown = {.mask = index->mask * 2 + 1, .count = index->count};

	if (index->count / ENTRIES_PER_BUCKET <= index->mask)
		return;
	grown.buckets = calloc((size_t)grown.mask + 1, sizeof(struct cv_bucket *));
	if (!grown.buckets)
		return;
	if (split(index, &grown)) {
		cv_index_deinit(&grown);
		return;
	}
	cv_index_deinit(index);
	*index = grown;
}

static struct cv_bucket **bucket_of(const struct cv_index *index, uint32_t hash)
{
	return &index->buckets[hash & index->mask];
}

/* Makes the bucket of `hash` ours alone, with room for `extra` entries above those promised already. */
static int prepare(struct cv_index *index, uint32_t hash, uint32_t extra)
{
	struct cv_bucket **slot = bucket_of(index, hash), *old = *slot, *bucket;
	uint32_t need = extra + (old ? old->count + old->reserved : 0);
	uint32_t i;

	/* Acquire: a worker that dropped the last other reference is done reading before we write. */
	if (old && atomic_load_explicit(&old->refs, memory_order_acquire) == 1 && old->room >= need)
		return 0;
	bucket = bucket_create(need + need / 4);
	if (!bucket)
		return -ENOMEM;
	for (i = 0; old && i < old->count; i++)
		bucket_append(bucket, old->hashes[i], old->objects[i]);
	if (old)
		bucket->reserved = old->reserved;
	bucket_release(old);
	*slot = bucket;
	return 0;
}

int cv_index_own(struct cv_index *index, uint32_t hash)
{
	return prepare(index, hash, 0);
}

int cv_index_reserve(struct cv_index *index, uint32_t hash)
{
	int error = prepare(index, hash, 1);

	if (!error)
		(*bucket_of(index, hash))->reserved++;
	return error;
}

void cv_index_cancel(struct cv_index *index, uint32_t hash)
{
	(*bucket_of(index, hash))->reserved--;
}

void cv_index_insert(struct cv_index *index, uint32_t hash, struct cv_object *object)
{
	struct cv_bucket *bucket = *bucket_of(index, hash);

	bucket->reserved--;
	bucket_append(bucket, hash, object);
	index->count++;
}

void cv_index_remove(struct cv_index *index, uint32_t hash, struct cv_object *object)
{
	struct cv_bucket *bucket = *bucket_of(index, hash);
	uint32_t i;

	for (i = 0; i < bucket->count; i++)
		if (bucket->objects[i] == object && bucket->hashes[i] == hash)
			break;
	if (i == bucket->count)
		return;
	bucket->count--;
	bucket->hashes[i] = bucket->hashes[bucket->count];
	bucket->objects[i] = bucket->objects[bucket->count];
	index->count--;
	cv_objects_release(object);
}

struct cv_object *cv_index_next(const struct cv_index *index, uint32_t hash, uint32_t *position)
{
	const struct cv_bucket *bucket = *bucket_of(index, hash);

	if (!bucket)
		return NULL;
	while (*position < bucket->count) {
		uint32_t at = (*position)++;

		if (bucket->hashes[at] == hash)
			return bucket->objects[at];
	}
	return NULL;
}
