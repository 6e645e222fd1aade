/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tables as the data path uses them: references, and look-ups whose results live as long as the reference.
 *
 * Python builds tables on its one thread and publishes them; from then on they are only read. Workers hold a
 * reference while they use what they found in them.
 */
#ifndef CULVERT_TABLES_H
#define CULVERT_TABLES_H
#include <stdatomic.h>
#include "border.h"
#include "tables_index.h"

enum { CV_PREFIX_BITS = 128 };

struct cv_tables {
	atomic_uint refs;
	struct cv_index by_number;  /* every object */
	struct cv_index by_uid;     /* workloads */
	struct cv_index by_address; /* workloads that are not hidden */
	struct cv_index by_vip;     /* services, by masked address and prefix length */
	uint32_t vips_of_length[CV_PREFIX_BITS + 1];
};

/* Thread safe. `release` is cv_tables_destroy under the name that fits a worker. */
struct cv_tables *cv_tables_acquire(struct cv_tables *tables);
void cv_tables_release(struct cv_tables *tables);

/* NULL when unknown, or when the number is another kind's. */
const struct cv_workload *cv_tables_workload(const struct cv_tables *tables, uint32_t number);
const struct cv_workload *cv_tables_workload_by_uid(const struct cv_tables *tables, const char *uid);
const struct cv_workload *cv_tables_workload_by_ip(const struct cv_tables *tables, const uint8_t ip[16]);
const struct cv_service *cv_tables_service(const struct cv_tables *tables, uint32_t number);
const struct cv_policy *cv_tables_policy(const struct cv_tables *tables, uint32_t number);

/*
 * The SPIFFE ids of which the next hop must show one: its workload's and the subject names of its service. Writes at
 * most `max` and returns how many there are.
 */
size_t cv_tables_expected(const struct cv_tables *tables, const struct cv_route *route, const char **ret, size_t max);

/* For tables_route.c: the object behind a service number, and hash and equality of VIP keys. */
const struct cv_service_object *cv_tables_service_object(const struct cv_tables *tables, uint32_t number);
uint32_t cv_tables_hash_prefix(const uint8_t ip[16], uint8_t length);
int cv_tables_prefix_equals(const struct cv_prefix *prefix, const uint8_t ip[16], uint8_t length);

#endif
