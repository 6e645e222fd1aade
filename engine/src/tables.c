/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building tables and finding things in them. An object has several keys (its number, uid, addresses, VIPs); a put
 * prepares the buckets of all old and new keys, which may fail, and then swaps, which may not.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "tables.h"

struct key {
	struct cv_index *index;
	uint32_t hash;
};

#define as_workload(object) ((const struct cv_workload_object *)(object))
#define as_service(object)  ((const struct cv_service_object *)(object))
#define as_policy(object)   ((const struct cv_policy_object *)(object))

/* ------------------------------------------------------------------- life */

static void deinit(struct cv_tables *tables)
{
	cv_index_deinit(&tables->by_number);
	cv_index_deinit(&tables->by_uid);
	cv_index_deinit(&tables->by_address);
	cv_index_deinit(&tables->by_vip);
	free(tables);
}

struct cv_tables *cv_tables_create(void)
{
	struct cv_tables *tables = calloc(1, sizeof(*tables));

	if (!tables)
		return NULL;
	atomic_init(&tables->refs, 1);
	if (cv_index_init(&tables->by_number) || cv_index_init(&tables->by_uid) || cv_index_init(&tables->by_address) ||
	    cv_index_init(&tables->by_vip)) {
		deinit(tables);
		return NULL;
	}
	return tables;
}

struct cv_tables *cv_tables_clone(const struct cv_tables *from)
{
	struct cv_tables *tables = calloc(1, sizeof(*tables));

	if (!tables)
		return NULL;
	atomic_init(&tables->refs, 1);
	memcpy(tables->vips_of_length, from->vips_of_length, sizeof(tables->vips_of_length));
	if (cv_index_copy(&from->by_number, &tables->by_number) || cv_index_copy(&from->by_uid, &tables->by_uid) ||
	    cv_index_copy(&from->by_address, &tables->by_address) || cv_index_copy(&from->by_vip, &tables->by_vip)) {
		deinit(tables);
		return NULL;
	}
	return tables;
}

struct cv_tables *cv_tables_acquire(struct cv_tables *tables)
{
	atomic_fetch_add_explicit(&tables->refs, 1, memory_order_relaxed);
	return tables;
}

void cv_tables_release(struct cv_tables *tables)
{
	if (tables && atomic_fetch_sub_explicit(&tables->refs, 1, memory_order_acq_rel) == 1)
		deinit(tables);
}

void cv_tables_destroy(struct cv_tables *tables)
{
	cv_tables_release(tables);
}

/* ------------------------------------------------------------------- keys */

static uint32_t hash_number(uint32_t number)
{
	return cv_index_hash(&number, sizeof(number));
}

static void mask(const uint8_t ip[16], uint8_t length, uint8_t ret[16])
{
	uint8_t whole = length / 8;

	memset(ret, 0, 16);
	memcpy(ret, ip, whole);
	if (length % 8)
		ret[whole] = ip[whole] & (uint8_t)(0xff00 >> (length % 8));
}

uint32_t cv_tables_hash_prefix(const uint8_t ip[16], uint8_t length)
{
	uint8_t key[17];

	mask(ip, length, key);
	key[16] = length;
	return cv_index_hash(key, sizeof(key));
}

int cv_tables_prefix_equals(const struct cv_prefix *prefix, const uint8_t ip[16], uint8_t length)
{
	uint8_t left[16], right[16];

	if (prefix->length != length)
		return false;
	mask(prefix->ip, length, left);
	mask(ip, length, right);
	return !memcmp(left, right, 16);
}

/* The i-th key of an object; false when it has no more. Key 0 is always the number. */
static bool key_of(struct cv_tables *tables, const struct cv_object *object, uint32_t i, struct key *ret)
{
	const struct cv_workload *workload = &as_workload(object)->view;
	const struct cv_service *service = &as_service(object)->view;

	if (i == 0) {
		*ret = (struct key){&tables->by_number, hash_number(object->number)};
		return true;
	}
	if (object->kind == CV_OBJECT_SERVICE) {
		if (--i >= service->vip_count)
			return false;
		*ret = (struct key){&tables->by_vip,
				    cv_tables_hash_prefix(service->vips[i].ip, service->vips[i].length)};
		return true;
	}
	if (object->kind != CV_OBJECT_WORKLOAD)
		return false;
	if (--i == 0) {
		*ret = (struct key){&tables->by_uid, cv_index_hash(workload->uid, strlen(workload->uid))};
		return true;
	}
	if (workload->hidden || --i >= workload->address_count)
		return false;
	*ret = (struct key){&tables->by_address, cv_index_hash(workload->addresses[i], 16)};
	return true;
}

/* ---------------------------------------------------------------- changes */

static struct cv_object *find(const struct cv_tables *tables, uint32_t number)
{
	uint32_t hash = hash_number(number), position = 0;
	struct cv_object *object;

	while ((object = cv_index_next(&tables->by_number, hash, &position)))
		if (object->number == number)
			return object;
	return NULL;
}

static void count_vips(struct cv_tables *tables, const struct cv_object *object, int by)
{
	const struct cv_service *service = &as_service(object)->view;
	uint32_t i;

	if (object->kind != CV_OBJECT_SERVICE)
		return;
	for (i = 0; i < service->vip_count; i++)
		tables->vips_of_length[service->vips[i].length] += (uint32_t)by;
}

static int own_keys(struct cv_tables *tables, const struct cv_object *object)
{
	struct key key;
	uint32_t i;

	for (i = 0; key_of(tables, object, i, &key); i++)
		if (cv_index_own(key.index, key.hash))
			return -ENOMEM;
	return 0;
}

static void cancel_keys(struct cv_tables *tables, const struct cv_object *object, uint32_t count)
{
	struct key key;

	while (count-- && key_of(tables, object, count, &key))
		cv_index_cancel(key.index, key.hash);
}

static int reserve_keys(struct cv_tables *tables, const struct cv_object *object, uint32_t *ret)
{
	struct key key;

	for (*ret = 0; key_of(tables, object, *ret, &key); ++*ret) {
		if (cv_index_reserve(key.index, key.hash)) {
			cancel_keys(tables, object, *ret);
			return -ENOMEM;
		}
	}
	return 0;
}

/* The buckets must be owned. The object lives on until its last index lets go of it. */
static void take_out(struct cv_tables *tables, struct cv_object *object)
{
	struct key key;
	uint32_t i;

	cv_objects_acquire(object);
	count_vips(tables, object, -1);
	for (i = 0; key_of(tables, object, i, &key); i++)
		cv_index_remove(key.index, key.hash, object);
	cv_objects_release(object);
}

/* Takes over the caller's reference on `object`, also on failure. */
static int put(struct cv_tables *tables, struct cv_object *object)
{
	struct cv_object *old = find(tables, object->number);
	struct key key;
	uint32_t keys, i;

	cv_index_grow(&tables->by_number);
	cv_index_grow(&tables->by_uid);
	cv_index_grow(&tables->by_address);
	cv_index_grow(&tables->by_vip);
	if (reserve_keys(tables, object, &keys)) {
		cv_objects_release(object);
		return -ENOMEM;
	}
	if (old && own_keys(tables, old)) {
		cancel_keys(tables, object, keys);
		cv_objects_release(object);
		return -ENOMEM;
	}
	if (old)
		take_out(tables, old);
	for (i = 0; key_of(tables, object, i, &key); i++)
		cv_index_insert(key.index, key.hash, object);
	count_vips(tables, object, 1);
	cv_objects_release(object);
	return 0;
}

int cv_tables_put_workload(struct cv_tables *tables, const struct cv_workload *workload)
{
	struct cv_object *object;
	int error = cv_objects_create_workload(workload, &object);

	return error ? error : put(tables, object);
}

int cv_tables_put_service(struct cv_tables *tables, const struct cv_service *service)
{
	struct cv_object *object;
	int error = cv_objects_create_service(service, &object);

	return error ? error : put(tables, object);
}

int cv_tables_put_policy(struct cv_tables *tables, const struct cv_policy *policy)
{
	struct cv_object *object;
	int error = cv_objects_create_policy(policy, &object);

	return error ? error : put(tables, object);
}

int cv_tables_remove(struct cv_tables *tables, uint32_t number)
{
	struct cv_object *object = find(tables, number);

	if (!object)
		return -ENOENT;
	if (own_keys(tables, object))
		return -ENOMEM;
	take_out(tables, object);
	return 0;
}

/* --------------------------------------------------------------- look-ups */

static const struct cv_object *find_kind(const struct cv_tables *tables, uint32_t number, enum cv_object_kind kind)
{
	const struct cv_object *object = find(tables, number);

	return object && object->kind == kind ? object : NULL;
}

const struct cv_workload *cv_tables_workload(const struct cv_tables *tables, uint32_t number)
{
	const struct cv_object *object = find_kind(tables, number, CV_OBJECT_WORKLOAD);

	return object ? &as_workload(object)->view : NULL;
}

const struct cv_policy *cv_tables_policy(const struct cv_tables *tables, uint32_t number)
{
	const struct cv_object *object = find_kind(tables, number, CV_OBJECT_POLICY);

	return object ? &as_policy(object)->view : NULL;
}

const struct cv_service_object *cv_tables_service_object(const struct cv_tables *tables, uint32_t number)
{
	return as_service(find_kind(tables, number, CV_OBJECT_SERVICE));
}

const struct cv_service *cv_tables_service(const struct cv_tables *tables, uint32_t number)
{
	const struct cv_service_object *service = cv_tables_service_object(tables, number);

	return service ? &service->view : NULL;
}

/* Two workloads with one uid are two generations of it: the younger has the larger number. */
const struct cv_workload *cv_tables_workload_by_uid(const struct cv_tables *tables, const char *uid)
{
	uint32_t hash = cv_index_hash(uid, strlen(uid)), position = 0;
	const struct cv_workload *best = NULL, *workload;
	const struct cv_object *object;

	while ((object = cv_index_next(&tables->by_uid, hash, &position))) {
		workload = &as_workload(object)->view;
		if (!strcmp(workload->uid, uid) && (!best || workload->number > best->number))
			best = workload;
	}
	return best;
}

static bool has_address(const struct cv_workload *workload, const uint8_t ip[16])
{
	uint32_t i;

	for (i = 0; i < workload->address_count; i++)
		if (!memcmp(workload->addresses[i], ip, 16))
			return true;
	return false;
}

/* Of several workloads on one address a pod wins, then one that speaks HBONE, then the younger. */
static bool beats(const struct cv_workload *left, const struct cv_workload *right)
{
	bool left_is_pod = strstr(left->uid, "//Pod/"), right_is_pod = strstr(right->uid, "//Pod/");

	if (left_is_pod != right_is_pod)
		return left_is_pod;
	if (!left->hbone != !right->hbone)
		return left->hbone;
	return left->number > right->number;
}

const struct cv_workload *cv_tables_workload_by_ip(const struct cv_tables *tables, const uint8_t ip[16])
{
	uint32_t hash = cv_index_hash(ip, 16), position = 0;
	const struct cv_workload *best = NULL, *workload;
	const struct cv_object *object;

	while ((object = cv_index_next(&tables->by_address, hash, &position))) {
		workload = &as_workload(object)->view;
		if (has_address(workload, ip) && (!best || beats(workload, best)))
			best = workload;
	}
	return best;
}

uint32_t cv_tables_by_address(const struct cv_tables *tables, const uint8_t ip[16])
{
	const struct cv_workload *workload = cv_tables_workload_by_ip(tables, ip);

	return workload ? workload->number : 0;
}

size_t cv_tables_expected(const struct cv_tables *tables, const struct cv_route *route, const char **ret, size_t max)
{
	const struct cv_workload *workload = cv_tables_workload(tables, route->next_hop);
	const struct cv_service *service = cv_tables_service(tables, route->next_hop_service);
	uint32_t names = service ? service->subject_name_count : 0, i;
	size_t count = 0;

	if (workload && count++ < max)
		ret[0] = workload->identity;
	for (i = 0; i < names; i++, count++)
		if (count < max)
			ret[count] = service->subject_names[i];
	return count;
}
