/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers and queues of bytes. One pool per worker, three sizes; a buffer is held only while bytes wait in it.
 *
 * Every buffer has headroom for one HTTP/2 frame header, so that a frame can be encrypted from where its bytes were
 * read; the large size is four TLS records less one header, so that such a frame fills whole records.
 */
#ifndef CULVERT_BUF_H
#define CULVERT_BUF_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
	CV_BUF_HEADROOM = 16,
	CV_BUF_SIZES = 3,
	CV_RECORD = 16384, /* most plaintext in a TLS record */
	CV_BUF_LARGE = 4 * CV_RECORD - 9,
};

struct cv_buf {
	struct cv_buf *next;
	uint32_t start;
	uint32_t end;
	uint32_t capacity; /* of data, headroom excluded */
	uint32_t size;     /* index into the pool's sizes */
	uint8_t data[];
};

struct cv_bufs {
	struct cv_buf *free[CV_BUF_SIZES];
	uint32_t count[CV_BUF_SIZES];
};

struct cv_queue {
	struct cv_buf *head;
	struct cv_buf *tail;
	size_t bytes;
	size_t held; /* capacity of the buffers in it: what it costs */
};

void cv_bufs_deinit(struct cv_bufs *pool);

/* The smallest buffer that holds `bytes`, at most a large one; NULL when memory is out. */
struct cv_buf *cv_buf_get(struct cv_bufs *pool, size_t bytes);
void cv_buf_put(struct cv_bufs *pool, struct cv_buf *buf);

static inline uint8_t *cv_buf_bytes(struct cv_buf *buf)
{
	return buf->data + buf->start;
}

static inline size_t cv_buf_length(const struct cv_buf *buf)
{
	return buf->end - buf->start;
}

/* Takes the buffer; a small content moves to a small buffer. */
void cv_queue_append(struct cv_queue *queue, struct cv_bufs *pool, struct cv_buf *buf);
int cv_queue_copy(struct cv_queue *queue, struct cv_bufs *pool, const uint8_t *bytes, size_t length);
void cv_queue_drop(struct cv_queue *queue, struct cv_bufs *pool, size_t bytes);
void cv_queue_clear(struct cv_queue *queue, struct cv_bufs *pool);
int cv_queue_vector(const struct cv_queue *queue, struct iovec *ret, int max);

#endif
