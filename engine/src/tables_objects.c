/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building an object packs the struct and everything its view points to into one block. The same packing function
 * runs twice: without a block to learn the size, then with it.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "policy.h"
#include "tables_objects.h"

struct pack {
	uint8_t *block; /* NULL while measuring */
	size_t used;
};

static void *reserve(struct pack *pack, size_t size, size_t alignment)
{
	size_t at = (pack->used + alignment - 1) & ~(alignment - 1);

	pack->used = at + size;
	return pack->block ? pack->block + at : NULL;
}

static const void *copy(struct pack *pack, const void *from, size_t size, size_t alignment)
{
	void *to = reserve(pack, size, alignment);

	if (to && size)
		memcpy(to, from, size);
	return to;
}

static const char *copy_text(struct pack *pack, const char *text)
{
	return copy(pack, text ? text : "", text ? strlen(text) + 1 : 1, 1);
}

#define copy_array(pack, array, count) copy(pack, array, (size_t)(count) * sizeof(*(array)), _Alignof(max_align_t))

static bool is_missing(const char *text)
{
	return !text || !*text;
}

static struct cv_object *start(void *block, enum cv_object_kind kind, uint32_t number)
{
	struct cv_object *object = block;

	atomic_init(&object->refs, 1);
	object->kind = kind;
	object->number = number;
	return object;
}

struct cv_object *cv_objects_acquire(struct cv_object *object)
{
	atomic_fetch_add_explicit(&object->refs, 1, memory_order_relaxed);
	return object;
}

void cv_objects_release(struct cv_object *object)
{
	if (object && atomic_fetch_sub_explicit(&object->refs, 1, memory_order_acq_rel) == 1)
		free(object);
}

/* --------------------------------------------------------------- workload */

static void pack_workload(struct pack *pack, const struct cv_workload *from)
{
	struct cv_workload_object *to = reserve(pack, sizeof(*to), _Alignof(max_align_t));
	struct cv_workload view = *from;

	view.uid = copy_text(pack, from->uid);
	view.identity = copy_text(pack, from->identity);
	view.namespace_ = copy_text(pack, from->namespace_);
	view.baggage = copy_text(pack, from->baggage);
	view.network = copy_text(pack, from->network);
	view.addresses = copy_array(pack, from->addresses, from->address_count);
	view.policies = copy_array(pack, from->policies, from->policy_count);
	if (to)
		to->view = view;
}

int cv_objects_create_workload(const struct cv_workload *from, struct cv_object **ret)
{
	struct pack pack = {};

	if (!from->number || is_missing(from->uid) || is_missing(from->identity) || is_missing(from->namespace_))
		return -EINVAL;
	pack_workload(&pack, from);
	pack = (struct pack){.block = malloc(pack.used)};
	if (!pack.block)
		return -ENOMEM;
	pack_workload(&pack, from);
	*ret = start(pack.block, CV_OBJECT_WORKLOAD, from->number);
	return 0;
}

/* ----------------------------------------------------------------- policy */

static void pack_policy(struct pack *pack, const struct cv_policy *from)
{
	struct cv_policy_object *to = reserve(pack, sizeof(*to), _Alignof(max_align_t));
	struct cv_policy view = *from;

	view.name = copy_text(pack, from->name);
	view.program = copy(pack, from->program, from->program_length, 1);
	if (to)
		to->view = view;
}

int cv_objects_create_policy(const struct cv_policy *from, struct cv_object **ret)
{
	struct pack pack = {};

	if (!from->number || is_missing(from->name) || cv_policy_check(from->program, from->program_length))
		return -EINVAL;
	pack_policy(&pack, from);
	pack = (struct pack){.block = malloc(pack.used)};
	if (!pack.block)
		return -ENOMEM;
	pack_policy(&pack, from);
	*ret = start(pack.block, CV_OBJECT_POLICY, from->number);
	return 0;
}

/* ---------------------------------------------------------------- service */

/* What a service is sorted into before it is packed. */
struct arrangement {
	struct cv_service_endpoint *endpoints;
	uint64_t *shares;
	struct cv_port_group *groups;
	uint32_t group_count;
};

static void arrangement_deinit(struct arrangement *arrangement)
{
	free(arrangement->endpoints);
	free(arrangement->shares);
	free(arrangement->groups);
}

static int by_port(const void *left, const void *right)
{
	const struct cv_port_group *a = left, *b = right;

	return (a->port > b->port) - (a->port < b->port);
}

static struct cv_port_group *find_group(struct cv_port_group *groups, uint32_t count, uint16_t port)
{
	struct cv_port_group key = {.port = port};

	return bsearch(&key, groups, count, sizeof(*groups), by_port);
}

/* Group 0 always exists: a service without members is a waypoint that nobody can reach, not a missing port. */
static void list_groups(struct arrangement *arrangement, const struct cv_service *from)
{
	struct cv_port_group *groups = arrangement->groups;
	uint32_t count = 1, kept = 0, i;

	for (i = 0; i < from->port_count; i++)
		groups[count++].port = from->ports[i];
	for (i = 0; i < from->endpoint_count; i++)
		groups[count++].port = from->endpoints[i].service_port;
	qsort(groups, count, sizeof(*groups), by_port);
	for (i = 1; i < count; i++)
		if (groups[i].port != groups[kept].port)
			groups[++kept] = groups[i];
	arrangement->group_count = kept + 1;
}

/* Counting sort: the order inside a port stays, because the Python reference picks by the same order. */
static void place_endpoints(struct arrangement *arrangement, const struct cv_service *from)
{
	const struct cv_service_endpoint *endpoint;
	struct cv_port_group *group;
	uint32_t first = 0, at, i;

	for (i = 0; i < from->endpoint_count; i++) {
		endpoint = &from->endpoints[i];
		find_group(arrangement->groups, arrangement->group_count, endpoint->service_port)->count++;
	}
	for (i = 0; i < arrangement->group_count; i++) {
		group = &arrangement->groups[i];
		group->first = first;
		first += group->count;
		group->count = 0;
	}
	for (i = 0; i < from->endpoint_count; i++) {
		endpoint = &from->endpoints[i];
		group = find_group(arrangement->groups, arrangement->group_count, endpoint->service_port);
		at = group->first + group->count++;
		arrangement->endpoints[at] = *endpoint;
		arrangement->shares[at] = endpoint->weight + (at > group->first ? arrangement->shares[at - 1] : 0);
	}
}

static int arrange(const struct cv_service *from, struct arrangement *ret)
{
	size_t ports = (size_t)from->port_count + from->endpoint_count + 1;
	size_t endpoints = (size_t)from->endpoint_count + 1; /* calloc(0) may be NULL */

	ret->endpoints = calloc(endpoints, sizeof(*ret->endpoints));
	ret->shares = calloc(endpoints, sizeof(*ret->shares));
	ret->groups = calloc(ports, sizeof(*ret->groups));
	if (!ret->endpoints || !ret->shares || !ret->groups)
		return -ENOMEM;
	list_groups(ret, from);
	place_endpoints(ret, from);
	return 0;
}

static void pack_service(struct pack *pack, const struct cv_service *from, const struct arrangement *arrangement)
{
	struct cv_service_object *to = reserve(pack, sizeof(*to), _Alignof(max_align_t));
	const char **names = reserve(pack, from->subject_name_count * sizeof(*names), _Alignof(max_align_t));
	struct cv_service view = *from;
	const char *name;
	uint32_t i;

	view.hostname = copy_text(pack, from->hostname);
	view.namespace_ = copy_text(pack, from->namespace_);
	view.waypoints = copy_array(pack, from->waypoints, from->waypoint_count);
	view.vips = copy_array(pack, from->vips, from->vip_count);
	view.ports = copy_array(pack, from->ports, from->port_count);
	view.endpoints = copy_array(pack, arrangement->endpoints, from->endpoint_count);
	view.subject_names = names;
	for (i = 0; i < from->subject_name_count; i++) {
		name = copy_text(pack, from->subject_names[i]);
		if (names)
			names[i] = name;
	}
	const uint64_t *shares = copy_array(pack, arrangement->shares, from->endpoint_count);
	const struct cv_port_group *groups = copy_array(pack, arrangement->groups, arrangement->group_count);
	if (!to)
		return;
	to->view = view;
	to->shares = shares;
	to->groups = groups;
	to->group_count = arrangement->group_count;
}

int cv_objects_create_service(const struct cv_service *from, struct cv_object **ret)
{
	__attribute__((cleanup(arrangement_deinit))) struct arrangement arrangement = {};
	struct pack pack = {};
	uint32_t i;

	if (!from->number || is_missing(from->hostname) || is_missing(from->namespace_))
		return -EINVAL;
	for (i = 0; i < from->vip_count; i++)
		if (from->vips[i].length > 128)
			return -EINVAL;
	if (arrange(from, &arrangement))
		return -ENOMEM;
	pack_service(&pack, from, &arrangement);
	pack = (struct pack){.block = malloc(pack.used)};
	if (!pack.block)
		return -ENOMEM;
	pack_service(&pack, from, &arrangement);
	*ret = start(pack.block, CV_OBJECT_SERVICE, from->number);
	return 0;
}

const struct cv_port_group *cv_objects_group(const struct cv_service_object *service, uint16_t port)
{
	return find_group((struct cv_port_group *)service->groups, service->group_count, port);
}

const struct cv_service_endpoint *cv_objects_pick(const struct cv_service_object *service,
						  const struct cv_port_group *group, uint64_t randomness)
{
	const uint64_t *shares = service->shares + group->first;
	uint64_t total = group->count ? shares[group->count - 1] : 0;
	uint64_t ticket = (uint64_t)(((unsigned __int128)randomness * total) >> 64);
	uint32_t low = 0, high = group->count, middle;

	if (!total)
		return NULL;
	while (low < high) { /* the first whose share is above the ticket */
		middle = low + (high - low) / 2;
		if (shares[middle] > ticket)
			high = middle;
		else
			low = middle + 1;
	}
	return &service->view.endpoints[group->first + low];
}
