/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread, one epoll loop: everything a connection needs lives and dies on one worker, so none of it is locked.
 *
 * A turn: run posted tasks, handle what epoll reports, fire timers, serve the ready list (objects that have more to
 * do than one turn's share), flush tunnels, free what was buried. Objects are freed only there, so a pointer that was
 * good at the start of a turn is good to its end.
 */
#ifndef CULVERT_WORKER_H
#define CULVERT_WORKER_H
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "buf.h"
#include "list.h"
#include "share.h"
#include "stats.h"
#include "timer.h"
#include "wait.h"

struct cv_engine;
struct cv_worker;
struct cv_tables;

/* What an epoll entry points at. */
struct cv_watch {
	void (*on)(struct cv_watch *watch, uint32_t events);
};

/* Something that asked for a place in the next turn, or for the end of this one. */
struct cv_job {
	struct cv_list link;
	void (*run)(struct cv_job *job);
};

/* Work for a worker from Python's thread. `run` owns the task. */
struct cv_task {
	struct cv_task *next;
	void (*run)(struct cv_worker *worker, struct cv_task *task);
};

struct cv_worker {
	struct cv_engine *engine;
	uint32_t index;
	bool started;
	bool stopping;
	pthread_t thread;
	int epoll;
	struct cv_watch wake_watch;
	int wake;
	int home_netns;
	uint64_t now_ms; /* CLOCK_MONOTONIC at the start of the turn */
	struct cv_wait wait;
	uint64_t sequence; /* last connection made here */
	uint64_t random;

	pthread_mutex_t lock; /* of the two below */
	struct cv_task *tasks;
	struct cv_task **tasks_tail;

	struct cv_task adopt;                  /* on its way while `published` is not NULL */
	_Atomic(struct cv_tables *) published; /* not yet adopted */
	const struct cv_tables *tables;        /* this worker's reference; NULL before the first publish */
	struct cv_timers timers;
	struct cv_bufs bufs;
	struct cv_list ready;
	struct cv_list flush;
	struct cv_list graves;
	struct cv_list seats;          /* struct cv_seat: the pods, as this worker sees them */
	struct cv_list waiting;        /* struct cv_conn: until tables or identities change */
	uint32_t handshakes;           /* in flight */
	struct cv_shares young_shares; /* of these, by the address that the tunnel has in its pod's shares */
	bool draining;
	bool drained;
	struct cv_timer drain_timer;
	uint8_t *cipher; /* scratch of one read, empty between reads */
	uint8_t *plain;
	uint8_t *record; /* plaintext of the record being gathered, empty between flushes */
	struct cv_figures figures;
};

enum {
	CV_WORKER_READ = 128 * 1024, /* one read of a tunnel, and what it decrypts to */
	CV_WORKER_SHARE = 4,         /* reads or writes that one object may do in a turn */
};

int cv_worker_init(struct cv_worker *worker, struct cv_engine *engine, uint32_t index);
void cv_worker_deinit(struct cv_worker *worker);
int cv_worker_start(struct cv_worker *worker);
void cv_worker_join(struct cv_worker *worker); /* asks it to stop and waits */

/* From any thread; in order. Before start the task runs at once. */
void cv_worker_post(struct cv_worker *worker, struct cv_task *task);
/* Posts and waits until `run` returned. */
int cv_worker_call(struct cv_worker *worker, int (*run)(struct cv_worker *worker, void *argument), void *argument);

/* From the worker's own thread. */
int cv_worker_watch(struct cv_worker *worker, int fd, uint32_t events, struct cv_watch *watch);
uint64_t cv_worker_random(struct cv_worker *worker);
/* A new socket inside `netns` (-1: where the worker lives), non-blocking; -errno. */
int cv_worker_socket(struct cv_worker *worker, int netns, int family);

static inline void cv_worker_ready(struct cv_worker *worker, struct cv_job *job)
{
	if (cv_list_empty(&job->link))
		cv_list_append(&worker->ready, &job->link);
}

static inline void cv_worker_flush(struct cv_worker *worker, struct cv_job *job)
{
	if (cv_list_empty(&job->link))
		cv_list_append(&worker->flush, &job->link);
}

/* Runs `free_owner` at the end of the turn. */
static inline void cv_worker_bury(struct cv_worker *worker, struct cv_job *job, void (*free_owner)(struct cv_job *job))
{
	cv_list_remove(&job->link);
	job->run = free_owner;
	cv_list_append(&worker->graves, &job->link);
}

#endif
