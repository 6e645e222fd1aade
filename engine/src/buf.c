/* SPDX-License-Identifier: Apache-2.0 */
/* Pooled buffers and byte queues. Owns free lists of bounded length; refuses to judge what the bytes are. */
#include "buf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t capacities[CV_BUF_SIZES] = {4096, 16384, CV_BUF_LARGE};
/* How many free buffers stay: about 1 MiB of each size, enough for a busy turn. */
static const uint32_t keep[CV_BUF_SIZES] = {256, 64, 16};

void cv_bufs_deinit(struct cv_bufs *pool)
{
	for (int size = 0; size < CV_BUF_SIZES; size++) {
		while (pool->free[size]) {
			struct cv_buf *buf = pool->free[size];

			pool->free[size] = buf->next;
			free(buf);
		}
		pool->count[size] = 0;
	}
}

struct cv_buf *cv_buf_get(struct cv_bufs *pool, size_t bytes)
{
	uint32_t size = 0;
	struct cv_buf *buf;

	while (size < CV_BUF_SIZES - 1 && capacities[size] < bytes)
		size++;
	buf = pool->free[size];
	if (buf) {
		pool->free[size] = buf->next;
		pool->count[size]--;
	} else {
		buf = malloc(sizeof(*buf) + CV_BUF_HEADROOM + capacities[size]);
		if (!buf)
			return NULL;
		buf->capacity = capacities[size];
		buf->size = size;
	}
	buf->next = NULL;
	buf->start = CV_BUF_HEADROOM;
	buf->end = CV_BUF_HEADROOM;
	return buf;
}

void cv_buf_put(struct cv_bufs *pool, struct cv_buf *buf)
{
	if (pool->count[buf->size] >= keep[buf->size]) {
		free(buf);
		return;
	}
	buf->next = pool->free[buf->size];
	pool->free[buf->size] = buf;
	pool->count[buf->size]++;
}

/* A buffer that is mostly empty would make a waiting byte cost 64 KiB. Without memory the large one stays. */
static struct cv_buf *shrink(struct cv_bufs *pool, struct cv_buf *buf)
{
	size_t length = cv_buf_length(buf);
	struct cv_buf *smaller;

	if (!buf->size || length > capacities[buf->size - 1])
		return buf;
	smaller = cv_buf_get(pool, length);
	if (!smaller)
		return buf;
	memcpy(smaller->data + smaller->end, cv_buf_bytes(buf), length);
	smaller->end += length;
	cv_buf_put(pool, buf);
	return smaller;
}

static void link_last(struct cv_queue *queue, struct cv_buf *buf)
{
	buf->next = NULL;
	if (queue->tail)
		queue->tail->next = buf;
	else
		queue->head = buf;
	queue->tail = buf;
	queue->bytes += cv_buf_length(buf);
	queue->held += buf->capacity;
}

static size_t fill_tail(struct cv_queue *queue, const uint8_t *bytes, size_t length)
{
	struct cv_buf *tail = queue->tail;
	size_t room = tail ? CV_BUF_HEADROOM + tail->capacity - tail->end : 0;
	size_t n = length < room ? length : room;

	if (n) {
		memcpy(tail->data + tail->end, bytes, n);
		tail->end += n;
		queue->bytes += n;
	}
	return n;
}

void cv_queue_append(struct cv_queue *queue, struct cv_bufs *pool, struct cv_buf *buf)
{
	struct cv_buf *tail = queue->tail;

	if (tail && cv_buf_length(buf) <= CV_BUF_HEADROOM + tail->capacity - tail->end &&
	    cv_buf_length(buf) <= capacities[0]) {
		fill_tail(queue, cv_buf_bytes(buf), cv_buf_length(buf));
		cv_buf_put(pool, buf);
		return;
	}
	link_last(queue, shrink(pool, buf));
}

int cv_queue_copy(struct cv_queue *queue, struct cv_bufs *pool, const uint8_t *bytes, size_t length)
{
	size_t done = fill_tail(queue, bytes, length);

	while (done < length) {
		struct cv_buf *buf = cv_buf_get(pool, length - done);
		size_t n;

		if (!buf)
			return -ENOMEM;
		n = length - done < buf->capacity ? length - done : buf->capacity;
		memcpy(buf->data + buf->end, bytes + done, n);
		buf->end += n;
		link_last(queue, buf);
		done += n;
	}
	return 0;
}

void cv_queue_drop(struct cv_queue *queue, struct cv_bufs *pool, size_t bytes)
{
	queue->bytes -= bytes;
	while (queue->head) {
		struct cv_buf *buf = queue->head;
		size_t length = cv_buf_length(buf);

		if (bytes < length) {
			buf->start += bytes;
			return;
		}
		bytes -= length;
		queue->head = buf->next;
		if (!queue->head)
			queue->tail = NULL;
		queue->held -= buf->capacity;
		cv_buf_put(pool, buf);
	}
}

void cv_queue_clear(struct cv_queue *queue, struct cv_bufs *pool)
{
	cv_queue_drop(queue, pool, queue->bytes);
}

int cv_queue_vector(const struct cv_queue *queue, struct iovec *ret, int max)
{
	int n = 0;

	for (struct cv_buf *buf = queue->head; buf && n < max; buf = buf->next) {
		ret[n].iov_base = cv_buf_bytes(buf);
		ret[n].iov_len = cv_buf_length(buf);
		n++;
	}
	return n;
}
