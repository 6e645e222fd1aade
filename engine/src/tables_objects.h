/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workloads, services and policies as the tables keep them: one allocation each, never changed, reference counted
 * because snapshots share them. The border's structs serve as their views, so every pointer in a view lives as long
 * as its object.
 */
#ifndef CULVERT_TABLES_OBJECTS_H
#define CULVERT_TABLES_OBJECTS_H
#include <stdatomic.h>
#include "border.h"

enum cv_object_kind {
	CV_OBJECT_WORKLOAD,
	CV_OBJECT_SERVICE,
	CV_OBJECT_POLICY,
};

struct cv_object {
	atomic_uint refs;
	enum cv_object_kind kind;
	uint32_t number;
};

struct cv_workload_object {
	struct cv_object object;
	struct cv_workload view;
};

/* The endpoints of one service port: a run of `view.endpoints`, and of `shares`. */
struct cv_port_group {
	uint16_t port;
	uint32_t first;
	uint32_t count;
};

struct cv_service_object {
	struct cv_object object;
	struct cv_service view;             /* endpoints sorted by port, otherwise in the order of the put */
	const struct cv_port_group *groups; /* sorted by port; also ports without an endpoint */
	uint32_t group_count;
	const uint64_t *shares; /* per endpoint: weights of its group up to and with it */
};

struct cv_policy_object {
	struct cv_object object;
	struct cv_policy view;
};

/* Each copies all it is given. -EINVAL: no number, a required string is missing, or a policy does not check. */
int cv_objects_create_workload(const struct cv_workload *from, struct cv_object **ret);
int cv_objects_create_service(const struct cv_service *from, struct cv_object **ret);
int cv_objects_create_policy(const struct cv_policy *from, struct cv_object **ret);

struct cv_object *cv_objects_acquire(struct cv_object *object);
void cv_objects_release(struct cv_object *object); /* takes NULL */

/* The endpoints of a port, NULL when the service has no such port. */
const struct cv_port_group *cv_objects_group(const struct cv_service_object *service, uint16_t port);
/* The endpoint of the group that `randomness` falls on, by weight; NULL when none has any. */
const struct cv_service_endpoint *cv_objects_pick(const struct cv_service_object *service,
						  const struct cv_port_group *group, uint64_t randomness);

#endif
