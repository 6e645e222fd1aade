/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup getpeername4/6 and getsockname4/6 (accept's address comes the same way): what an application is told.
 *
 * The end that dialled sees what it dialled, and its pod's address where the kernel would say loopback. The end that
 * accepted sees the true client. ztunnel's own sockets are told the truth of the kernel.
 *
 * Decides about no connection; without it only names are wrong.
 */
#include "sockets.h"

enum { CV_STATE_LISTEN = 10 }; /* TCP_LISTEN of the kernel */

/* The address to show as peer, or NULL for the kernel's. */
static inline struct cv_note *peer_of(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;

	if (!sk)
		return NULL;
	note = notes.sk_storage_get(sk, 0, 0);
	if (!note || (note->kind != CV_NOTE_CAPTURED && note->kind != CV_NOTE_SERVED))
		return NULL;
	return note;
}

/*
 * The pod's address to show on a captured socket; NULL when the kernel's name is right. It stands in the note, because
 * the socket may outlive the pod's enrolment.
 */
static inline struct cv_addr16 *own_of(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;

	if (!sk || sk->state == CV_STATE_LISTEN)
		return NULL;
	note = notes.sk_storage_get(sk, 0, 0);
	if (!note || note->kind != CV_NOTE_CAPTURED)
		return NULL;
	if (!(cv_word(&note->own, 0) | cv_word(&note->own, 1) | cv_word(&note->own, 2) | cv_word(&note->own, 3)))
		return NULL;
	return &note->own;
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	struct cv_note *note = peer_of(ctx);

	if (!note || !cv_is_v4(&note->orig))
		return 1;
	ctx->user_ip4 = cv_word(&note->orig, 3);
	ctx->user_port = note->orig_port;
	return 1;
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	struct cv_note *note = peer_of(ctx);

	if (!note)
		return 1;
	ctx->user_ip6[0] = cv_word(&note->orig, 0);
	ctx->user_ip6[1] = cv_word(&note->orig, 1);
	ctx->user_ip6[2] = cv_word(&note->orig, 2);
	ctx->user_ip6[3] = cv_word(&note->orig, 3);
	ctx->user_port = note->orig_port;
	return 1;
}

int getsockname4(struct bpf_sock_addr *ctx)
{
	struct cv_addr16 local, *own;

	cv_address_v4(&local, ctx->user_ip4);
	if (!cv_is_loopback(&local))
		return 1;
	own = own_of(ctx);
	if (own && cv_is_v4(own))
		ctx->user_ip4 = cv_word(own, 3);
	return 1;
}

int getsockname6(struct bpf_sock_addr *ctx)
{
	struct cv_addr16 local, *own;

	cv_address_v6(&local, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	if (!cv_is_loopback(&local))
		return 1;
	own = own_of(ctx);
	if (!own)
		return 1;
	ctx->user_ip6[0] = cv_word(own, 0);
	ctx->user_ip6[1] = cv_word(own, 1);
	ctx->user_ip6[2] = cv_word(own, 2);
	ctx->user_ip6[3] = cv_word(own, 3);
	return 1;
}
