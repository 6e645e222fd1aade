/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives the tables where Python cannot reach: every allocation fails once, and snapshots are dropped by other threads
 * while the next one is made. Built with --wrap=malloc,calloc and a sanitizer by test_tables_memory.py.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tables.h"

enum {
	NUMBERS = 40,
	STEPS = 400,
	SNAPSHOTS = 3000,
};

static _Thread_local long allocations_left = -1; /* -1: without end */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);

static bool is_spent(void)
{
	return allocations_left >= 0 && allocations_left-- == 0;
}

void *__wrap_malloc(size_t size)
{
	return is_spent() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return is_spent() ? NULL : __real_calloc(count, size);
}

#define check(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static uint64_t state = 88172645463325252;

static uint32_t draw(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state % below);
}

static void address_of(uint32_t i, uint8_t ret[16])
{
	memset(ret, 0, 16);
	ret[10] = ret[11] = 0xff;
	ret[12] = 10;
	ret[15] = (uint8_t)i;
}

/* One change: which, and of what; the same numbers give the same change. */
struct step {
	uint32_t kind;
	uint32_t number;
	uint32_t a, b;
};

static int put_workload(struct cv_tables *tables, const struct step *step)
{
	uint8_t addresses[2][16];
	uint32_t policies[2] = {step->a, step->b};
	char uid[32];

	snprintf(uid, sizeof(uid), "x//Pod/n/%u", step->a % 7);
	address_of(step->a % 20, addresses[0]);
	address_of(step->b % 20, addresses[1]);
	return cv_tables_put_workload(tables, &(struct cv_workload){
						      .number = step->number,
						      .uid = uid,
						      .identity = "spiffe://td/ns/n/sa/a",
						      .namespace_ = "n",
						      .hbone = step->a & 1,
						      .hidden = step->b % 5 == 0,
						      .addresses = addresses,
						      .address_count = step->b % 3,
						      .policies = policies,
						      .policy_count = step->a % 3,
					      });
}

static int put_service(struct cv_tables *tables, const struct step *step)
{
	struct cv_prefix vips[2] = {{.length = 128}, {.length = (uint8_t)(100 + step->b % 29)}};
	struct cv_service_endpoint endpoints[3] = {
		{step->a, 80, 8080, step->b % 3}, {step->b, 0, 0, 1}, {step->b, 80, 81, 2}};
	struct cv_waypoint_ref waypoint = {(uint8_t)(step->a % 4), 15008, step->b, 1};
	const char *names[2] = {"spiffe://td/ns/n/sa/x", NULL};
	uint16_t ports[2] = {80, 81};
	char hostname[32];

	snprintf(hostname, sizeof(hostname), "s%u", step->a % 5);
	address_of(20 + step->a % 10, vips[0].ip);
	address_of(step->b % 30, vips[1].ip);
	return cv_tables_put_service(tables, &(struct cv_service){
						     .number = step->number,
						     .hostname = hostname,
						     .namespace_ = step->a % 2 ? "n" : "m",
						     .namespace_only = step->b % 7 == 0,
						     .waypoints = &waypoint,
						     .waypoint_count = step->a % 5 == 0,
						     .vips = vips,
						     .vip_count = step->b % 3,
						     .endpoints = endpoints,
						     .endpoint_count = step->a % 4,
						     .ports = ports,
						     .port_count = 2,
						     .subject_names = names,
						     .subject_name_count = step->a % 3,
					     });
}

static int put_policy(struct cv_tables *tables, const struct step *step)
{
	static const uint8_t program[] = {0, 0, 0, 0}; /* one rule without clauses */

	return cv_tables_put_policy(tables, &(struct cv_policy){
						    .number = step->number,
						    .name = "n/p",
						    .deny = step->a % 2,
						    .program = program,
						    .program_length = step->b % 2 ? sizeof(program) : 0,
					    });
}

static int take(struct cv_tables *tables, const struct step *step)
{
	switch (step->kind) {
	case 0:
	case 1:
		return put_workload(tables, step);
	case 2:
		return put_service(tables, step);
	case 3:
		return put_policy(tables, step);
	default:
		return cv_tables_remove(tables, step->number);
	}
}

static struct step draw_step(void)
{
	return (struct step){draw(6), 1 + draw(NUMBERS), 1 + draw(NUMBERS), 1 + draw(NUMBERS)};
}

/* All that can be seen of the tables from outside, as one number. */
static uint64_t fingerprint(const struct cv_tables *tables)
{
	struct cv_endpoint destination = {.port = 80};
	struct cv_peer peer = {.identity = "spiffe://td/ns/n/sa/a"};
	struct cv_route route;
	struct cv_verdict verdict;
	const char *expected[2];
	uint64_t sum = 0;
	uint32_t i, source;
	size_t byte;

	for (source = 1; source <= NUMBERS; source += 3) {
		for (i = 0; i < 32; i++) {
			address_of(i, destination.ip);
			cv_tables_route(tables, source, &destination, (uint64_t)i << 59, &route);
			for (byte = 0; byte < sizeof(route); byte++)
				sum = sum * 31 + ((const uint8_t *)&route)[byte];
			sum = sum * 31 + cv_tables_expected(tables, &route, expected, 2);
			sum = sum * 31 + cv_tables_by_address(tables, destination.ip);
		}
		cv_tables_judge(tables, source, &peer, &destination, &verdict);
		sum = sum * 31 + verdict.allow + verdict.policy * 3 + !!cv_tables_workload_by_uid(tables, "x//Pod/n/3");
	}
	return sum;
}

static void fail_every_allocation(void)
{
	struct cv_tables *tables = cv_tables_create(), *snapshot = NULL, *made;
	uint64_t before, of_snapshot = 0;
	int step_count, error, failed = 0;
	long allowed;

	for (allowed = 0;; allowed++) {
		allocations_left = allowed;
		made = cv_tables_create();
		allocations_left = -1;
		if (made)
			break;
	}
	cv_tables_destroy(made);
	for (step_count = 0; step_count < STEPS; step_count++) {
		struct step step = draw_step();

		before = fingerprint(tables);
		for (allowed = 0;; allowed++, failed++) {
			allocations_left = allowed;
			error = take(tables, &step);
			allocations_left = -1;
			if (error != -ENOMEM)
				break;
			check(fingerprint(tables) == before);
		}
		check(error == 0 || error == -ENOENT);
		check(!snapshot || fingerprint(snapshot) == of_snapshot);
		if (step_count % 3)
			continue;
		cv_tables_destroy(snapshot);
		for (allowed = 0;; allowed++) {
			allocations_left = allowed;
			snapshot = cv_tables_clone(tables);
			allocations_left = -1;
			if (snapshot)
				break;
		}
		of_snapshot = fingerprint(snapshot);
	}
	check(failed > STEPS);
	cv_tables_destroy(snapshot);
	cv_tables_destroy(tables);
}

static struct cv_tables *published;
static bool is_over;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *work(void *unused)
{
	struct cv_tables *mine;
	uint64_t sum = 0;
	bool is_last;

	(void)unused;
	do {
		pthread_mutex_lock(&lock);
		mine = cv_tables_acquire(published);
		is_last = is_over;
		pthread_mutex_unlock(&lock);
		sum += fingerprint(mine);
		cv_tables_release(mine);
	} while (!is_last);
	return (void *)(uintptr_t)sum;
}

static void publish_under_readers(void)
{
	struct cv_tables *master = cv_tables_create(), *old, *next;
	pthread_t workers[2];
	int i;

	published = cv_tables_clone(master);
	for (i = 0; i < 2; i++)
		check(!pthread_create(&workers[i], NULL, work, NULL));
	for (i = 0; i < SNAPSHOTS; i++) {
		struct step step = draw_step();

		take(master, &step);
		next = cv_tables_clone(master);
		pthread_mutex_lock(&lock);
		old = published;
		published = next;
		is_over = i == SNAPSHOTS - 1;
		pthread_mutex_unlock(&lock);
		cv_tables_release(old);
	}
	for (i = 0; i < 2; i++)
		pthread_join(workers[i], NULL);
	cv_tables_release(published);
	cv_tables_destroy(master);
}

static void grow_to_many(void)
{
	struct cv_tables *tables = cv_tables_create(), *snapshot;
	uint8_t address[1][16] = {};
	uint32_t i, count = 20000;
	char uid[32];

	for (i = 1; i <= count; i++) {
		memcpy(address[0], &i, sizeof(i));
		snprintf(uid, sizeof(uid), "u%u", i);
		allocations_left = i % 64 == 0 ? 6 : -1; /* sometimes it cannot grow */
		while (cv_tables_put_workload(tables, &(struct cv_workload){.number = i,
									    .uid = uid,
									    .identity = "i",
									    .namespace_ = "n",
									    .addresses = address,
									    .address_count = 1}))
			allocations_left = -1;
		allocations_left = -1;
	}
	snapshot = cv_tables_clone(tables);
	for (i = 1; i <= count; i++) {
		memcpy(address[0], &i, sizeof(i));
		check(cv_tables_by_address(snapshot, address[0]) == i);
		if (i % 2)
			check(!cv_tables_remove(tables, i));
		check(cv_tables_by_address(tables, address[0]) == (i % 2 ? 0 : i));
		check(cv_tables_workload(snapshot, i));
	}
	cv_tables_destroy(tables);
	cv_tables_destroy(snapshot);
}

/* What only the data path asks: whom to expect behind a route, and the younger of two workloads with one uid. */
static void answer_the_data_path(void)
{
	struct cv_tables *tables = cv_tables_create(), *held;
	const char *names[2] = {"spiffe://td/ns/n/sa/x", "spiffe://td/ns/n/sa/y"};
	const char *expected[3] = {NULL, NULL, NULL};
	struct cv_workload workload = {
		.number = 4, .uid = "u", .identity = "spiffe://td/ns/n/sa/old", .namespace_ = "n"};
	struct cv_service service = {.number = 2, .hostname = "h", .namespace_ = "n"};
	struct cv_route route = {.next_hop = 9, .next_hop_service = 2};

	check(!cv_tables_put_workload(tables, &workload));
	workload.number = 9;
	workload.identity = "spiffe://td/ns/n/sa/new";
	check(!cv_tables_put_workload(tables, &workload));
	service.subject_names = names;
	service.subject_name_count = 2;
	check(!cv_tables_put_service(tables, &service));
	check(cv_tables_workload_by_uid(tables, "u")->number == 9);
	check(!cv_tables_workload(tables, 2) && !cv_tables_service(tables, 9) && !cv_tables_policy(tables, 9));
	check(cv_tables_expected(tables, &route, expected, 2) == 3 && !expected[2]);
	check(!strcmp(expected[0], workload.identity) && !strcmp(expected[1], names[0]));
	route.next_hop_service = 0;
	check(cv_tables_expected(tables, &route, expected, 3) == 1);

	held = cv_tables_acquire(cv_tables_clone(tables));
	check(!cv_tables_remove(tables, 9) && cv_tables_remove(tables, 9) == -ENOENT);
	check(cv_tables_workload_by_uid(tables, "u")->number == 4);
	cv_tables_destroy(tables);
	cv_tables_destroy(held); /* the publisher's reference; ours still holds the strings */
	check(!strcmp(cv_tables_workload_by_uid(held, "u")->identity, workload.identity));
	cv_tables_release(held);
}

static void refuse_what_is_incomplete(void)
{
	struct cv_tables *tables = cv_tables_create();
	struct cv_prefix too_long = {.length = 129};
	struct cv_workload workload = {.uid = "u", .identity = "i", .namespace_ = "n"};
	struct cv_service service = {
		.number = 1, .hostname = "h", .namespace_ = "n", .vips = &too_long, .vip_count = 1};
	struct cv_policy policy = {.number = 1, .name = "n/p", .program_length = 1};

	check(cv_tables_put_workload(tables, &workload) == -EINVAL);
	workload.number = 1;
	workload.identity = NULL;
	check(cv_tables_put_workload(tables, &workload) == -EINVAL);
	check(cv_tables_put_service(tables, &service) == -EINVAL);
	check(cv_tables_put_policy(tables, &policy) == -EINVAL);
	check(cv_tables_remove(tables, 1) == -ENOENT);
	cv_tables_destroy(tables);
	cv_tables_destroy(NULL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "memory")) {
		fail_every_allocation();
		grow_to_many();
		answer_the_data_path();
		refuse_what_is_incomplete();
	} else if (!strcmp(mode, "threads")) {
		publish_under_readers();
	} else {
		return 2;
	}
	puts("ok");
	return 0;
}
