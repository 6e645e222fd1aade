/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup bind4 and bind6: in an enrolled pod nobody but ztunnel binds the mesh's TCP ports.
 *
 * An application on one of them would receive what is captured. ztunnel's sockets carry the note that says OWN, which
 * only a holder of the map can write. Fails closed: without such a note the bind is refused, as if the port were taken.
 */
#include "sockets.h"

static inline int judge_bind(struct bpf_sock_addr *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;

	if (ctx->protocol != CV_IPPROTO_TCP)
		return 1;
	if (ctx->user_port != CV_NETWORK16(CV_PORT_OUTBOUND) && ctx->user_port != CV_NETWORK16(CV_PORT_INBOUND) &&
	    ctx->user_port != CV_NETWORK16(CV_PORT_HBONE))
		return 1;
	if (!pods.lookup(&netns))
		return 1;
	if (sk) {
		note = notes.sk_storage_get(sk, 0, 0);
		if (note && note->kind == CV_NOTE_OWN)
			return 1;
	}
	cv_count(CV_COUNT_BIND_REFUSED);
	cv_set_retval(-CV_EADDRINUSE);
	return 0;
}

int bind4(struct bpf_sock_addr *ctx)
{
	return judge_bind(ctx);
}

int bind6(struct bpf_sock_addr *ctx)
{
	return judge_bind(ctx);
}
