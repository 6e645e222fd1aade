/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of one worker thread, its task queue, and sockets made inside a pod's network namespace. */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

enum { EVENTS = 128 };

static uint64_t monotonic_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static struct cv_task *take_tasks(struct cv_worker *worker)
{
	struct cv_task *tasks;

	pthread_mutex_lock(&worker->lock);
	tasks = worker->tasks;
	worker->tasks = NULL;
	worker->tasks_tail = &worker->tasks;
	pthread_mutex_unlock(&worker->lock);
	return tasks;
}

static void run_tasks(struct cv_worker *worker)
{
	struct cv_task *task = take_tasks(worker);

	while (task) {
		struct cv_task *next = task->next;

		task->run(worker, task);
		task = next;
	}
}

static void on_wake(struct cv_watch *watch, uint32_t events)
{
	struct cv_worker *worker = cv_container(watch, struct cv_worker, wake_watch);
	uint64_t count;

	(void)events;
	while (read(worker->wake, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	run_tasks(worker); /* what was posted since this turn took its tasks has no other wake-up */
}

static void run_jobs(struct cv_list *list)
{
	struct cv_list jobs;

	cv_list_take(&jobs, list);
	while (!cv_list_empty(&jobs)) {
		struct cv_job *job = cv_container(jobs.next, struct cv_job, link);

		cv_list_remove(&job->link);
		job->run(job);
	}
}

/* Burying may bury more; flushing may make something ready, never the other way round. */
static void end_turn(struct cv_worker *worker)
{
	run_jobs(&worker->ready);
	run_jobs(&worker->flush);
	while (!cv_list_empty(&worker->graves))
		run_jobs(&worker->graves);
	if (worker->draining)
		cv_engine_check_drained(worker);
}

static void turn(struct cv_worker *worker)
{
	struct epoll_event events[EVENTS];
	int wait = cv_timers_run(&worker->timers, worker->now_ms);
	int n;

	/* Timers may have queued work after the last turn's end: serve it before sleeping. */
	end_turn(worker);
	if (!cv_list_empty(&worker->ready) || !cv_list_empty(&worker->flush))
		wait = 0;
	n = cv_wait_events(&worker->wait, worker->epoll, events, EVENTS, wait);
	worker->now_ms = monotonic_ms();
	run_tasks(worker); /* before the events: what Python published before a peer acted is in force for that act */
	for (int i = 0; i < n; i++) {
		struct cv_watch *watch = events[i].data.ptr;

		watch->on(watch, events[i].events);
	}
	end_turn(worker);
}

static void *run(void *argument)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
	struct cv_worker *worker = argument;
	sigset_t all;

	sigfillset(&all); /* signals are for Python's thread; faults of our own are nobody's but ours */
	for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++)
		sigdelset(&all, faults[i]);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	worker->now_ms = monotonic_ms();
	while (!worker->stopping)
		turn(worker);
	return NULL;
}

int cv_worker_init(struct cv_worker *worker, struct cv_engine *engine, uint32_t index)
{
	memset(worker, 0, sizeof(*worker));
	worker->engine = engine;
	worker->index = index;
	worker->now_ms = monotonic_ms();
	cv_wait_init(&worker->wait, engine->settings.spin_us, &worker->figures.spun_ns);
	worker->tasks_tail = &worker->tasks;
	worker->wake_watch.on = on_wake;
	cv_list_init(&worker->ready);
	cv_list_init(&worker->flush);
	cv_list_init(&worker->graves);
	cv_list_init(&worker->seats);
	cv_list_init(&worker->waiting);
	pthread_mutex_init(&worker->lock, NULL);
	if (getrandom(&worker->random, sizeof(worker->random), 0) != sizeof(worker->random))
		worker->random = worker->now_ms * 0x9e3779b97f4a7c15u;
	worker->random |= 1;
	worker->home_netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	worker->epoll = epoll_create1(EPOLL_CLOEXEC);
	worker->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	worker->cipher = malloc(CV_WORKER_READ);
	worker->plain = malloc(CV_WORKER_READ);
	worker->record = malloc(CV_RECORD);
	if (worker->home_netns < 0 || worker->epoll < 0 || worker->wake < 0)
		return -errno;
	if (!worker->cipher || !worker->plain || !worker->record)
		return -ENOMEM;
	return cv_worker_watch(worker, worker->wake, EPOLLIN, &worker->wake_watch);
}

void cv_worker_deinit(struct cv_worker *worker)
{
	run_tasks(worker);
	end_turn(worker);
	cv_bufs_deinit(&worker->bufs);
	free(worker->cipher);
	free(worker->plain);
	free(worker->record);
	if (worker->epoll >= 0)
		close(worker->epoll);
	if (worker->wake >= 0)
		close(worker->wake);
	if (worker->home_netns >= 0)
		close(worker->home_netns);
	pthread_mutex_destroy(&worker->lock);
}

int cv_worker_start(struct cv_worker *worker)
{
	int error = pthread_create(&worker->thread, NULL, run, worker);

	worker->started = !error;
	return -error;
}

static void stop(struct cv_worker *worker, struct cv_task *task)
{
	worker->stopping = true;
	free(task);
}

void cv_worker_join(struct cv_worker *worker)
{
	struct cv_task *task;

	if (!worker->started)
		return;
	while (!(task = calloc(1, sizeof(*task))))
		sched_yield();
	task->run = stop;
	cv_worker_post(worker, task);
	pthread_join(worker->thread, NULL);
	worker->started = false;
}

void cv_worker_post(struct cv_worker *worker, struct cv_task *task)
{
	uint64_t one = 1;

	if (!worker->started) {
		task->run(worker, task);
		return;
	}
	task->next = NULL;
	pthread_mutex_lock(&worker->lock);
	*worker->tasks_tail = task;
	worker->tasks_tail = &task->next;
	pthread_mutex_unlock(&worker->lock);
	while (write(worker->wake, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

struct call {
	struct cv_task task;
	int (*run)(struct cv_worker *worker, void *argument);
	void *argument;
	int result;
	sem_t done;
};

static void run_call(struct cv_worker *worker, struct cv_task *task)
{
	struct call *call = cv_container(task, struct call, task);

	call->result = call->run(worker, call->argument);
	sem_post(&call->done);
}

int cv_worker_call(struct cv_worker *worker, int (*run)(struct cv_worker *worker, void *argument), void *argument)
{
	struct call call = {.task.run = run_call, .run = run, .argument = argument};

	sem_init(&call.done, 0, 0);
	cv_worker_post(worker, &call.task);
	while (sem_wait(&call.done) < 0 && errno == EINTR)
		;
	sem_destroy(&call.done);
	return call.result;
}

int cv_worker_watch(struct cv_worker *worker, int fd, uint32_t events, struct cv_watch *watch)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	return epoll_ctl(worker->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* xorshift64*: spreads load and marks traces; nothing secret depends on it. */
uint64_t cv_worker_random(struct cv_worker *worker)
{
	uint64_t x = worker->random;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	worker->random = x;
	return x * 0x2545f4914f6cdd1du;
}

int cv_worker_socket(struct cv_worker *worker, int netns, int family)
{
	int fd;
	int error;

	if (netns >= 0 && setns(netns, CLONE_NEWNET) < 0)
		return -errno;
	fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	error = errno;
	/* Back at once: a thread that stays would keep a deleted pod's namespace alive. Failing to is not survivable:
	 * every later socket would be made in the wrong pod. */
	if (netns >= 0 && setns(worker->home_netns, CLONE_NEWNET) < 0)
		abort();
	return fd < 0 ? -error : fd;
}
