/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup bind4 and bind6: in an enrolled pod nobody but ztunnel binds the mesh's TCP ports.
 *
 * An application on one of them would receive what is captured. ztunnel's sockets carry the note that says OWN, which
 * only a holder of the map can write. Fails closed: without such a note the bind is refused, as if the port were taken,
 * and the pod's entry says which port it was: the agent tells whoever wonders why the application does not start.
 */
#include "sockets.h"

/* Which mesh port it is; 0: none. */
static inline __u32 mesh_port(__u32 port)
{
	if (port == CV_NETWORK16(CV_PORT_OUTBOUND))
		return CV_REFUSED_OUTBOUND;
	if (port == CV_NETWORK16(CV_PORT_INBOUND))
		return CV_REFUSED_INBOUND;
	return port == CV_NETWORK16(CV_PORT_HBONE) ? CV_REFUSED_HBONE : 0;
}

static inline int judge_bind(struct bpf_sock_addr *ctx)
{
	__u32 port = mesh_port(ctx->user_port);
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;
	struct cv_pod *pod;

	if (ctx->protocol != CV_IPPROTO_TCP || !port)
		return 1;
	pod = pods.lookup(&netns);
	if (!pod)
		return 1;
	if (sk) {
		note = notes.sk_storage_get(sk, 0, 0);
		if (note && note->kind == CV_NOTE_OWN)
			return 1;
	}
	pod->refused_ports |= port; /* of two at once one may be lost: it is tried again, or the other is told */
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
