/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: carries a note from the socket that connects to the socket that is accepted.
 *
 * Before the SYN leaves, the note is published under the netns of the acceptor and the 4-tuple; when the accepting
 * socket is established it takes the note over and the key goes. A connection that dies before takes its own key
 * along. Probes publish their tuple for `inbound` instead, for as long as their socket lives.
 *
 * Acts on sockets that carry a note, and on accepted ones of enrolled pods. Refuses nothing itself. When a map is full
 * the accepted socket has no note: ztunnel refuses such a connection, so that it fails closed.
 */
#include "sockets.h"

/* `bpf_sock_ops_cb_flags_set` replaces what other programs asked for. */
static inline void ask_for(struct bpf_sock_ops *ctx, int flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | flags);
}

static inline __be16 local_port_of(struct bpf_sock_ops *ctx)
{
	return CV_NETWORK16((__u16)ctx->local_port); /* host order in this one field */
}

static inline __be16 remote_port_of(struct bpf_sock_ops *ctx)
{
	return (__be16)(ctx->remote_port >> 16); /* network order, in the upper half on little endian */
}

static inline void tuple_of(struct bpf_sock_ops *ctx, __u64 netns, struct cv_tuple *ret)
{
	ret->netns = netns;
	CV_ADDRESS(&ret->local, ctx, local);
	CV_ADDRESS(&ret->remote, ctx, remote);
	ret->local_port = local_port_of(ctx);
	ret->remote_port = remote_port_of(ctx);
	ret->reserved = 0;
}

/* As the pod sees it: its own end is local. */
static inline void expected_of(struct bpf_sock_ops *ctx, struct cv_expected_key *ret)
{
	CV_ADDRESS(&ret->local, ctx, remote);
	CV_ADDRESS(&ret->remote, ctx, local);
	ret->local_port = remote_port_of(ctx);
	ret->remote_port = local_port_of(ctx);
	ret->reserved = 0;
}

/* How many keys a pod holds in `inflight`; NULL when there is no room to count them. */
static inline __s32 *unanswered_of(__u64 netns)
{
	__s32 *held = unanswered.lookup(&netns);
	__s32 none = 0;

	if (held)
		return held;
	unanswered.insert(&netns, &none); /* another CPU may have been first: same entry */
	return unanswered.lookup(&netns);
}

/*
 * Puts a key into `inflight`, within the pod's share of it: a pod that lets its own connects stay unanswered spends no
 * other pod's room. Only a new key counts, and only its deletion counts back, so that the figure cannot drift.
 */
static inline int hold(struct cv_tuple *key, struct cv_note *note)
{
	__u64 netns = key->netns;
	__s32 *held = unanswered_of(netns);

	if (!held)
		return CV_COUNT_CARRY_FULL;
	if (inflight.lookup(key)) /* of a socket that is gone */
		return inflight.update(key, note) ? CV_COUNT_CARRY_FULL : CV_COUNT_CARRY_PUBLISHED;
	if (*held >= CV_UNANSWERED_MAX)
		return CV_COUNT_CARRY_POD_FULL;
	if (inflight.insert(key, note))
		return CV_COUNT_CARRY_FULL;
	__sync_fetch_and_add(held, 1);
	return CV_COUNT_CARRY_PUBLISHED;
}

static inline void let_go(struct cv_tuple *key)
{
	__u64 netns = key->netns;
	__s32 *held;

	if (inflight.delete(key))
		return;
	held = unanswered.lookup(&netns);
	if (held)
		__sync_fetch_and_add(held, -1);
}

static inline void publish(struct bpf_sock_ops *ctx, struct cv_note *note)
{
	int exit;

	if (note->kind == CV_NOTE_PROBE) {
		struct cv_expected_key key;
		struct cv_expected value = {.cookie = note->cookie, .netns = note->netns};

		expected_of(ctx, &key);
		exit = expected.update(&key, &value) ? CV_COUNT_CARRY_FULL : CV_COUNT_CARRY_PUBLISHED;
	} else if (note->kind == CV_NOTE_CAPTURED || note->kind == CV_NOTE_CLIENT) {
		struct cv_tuple key;
		struct cv_note copy = *note;

		if (copy.netns == 0)
			copy.netns = bpf_get_netns_cookie(ctx);
		copy.cookie = cv_socket_cookie(ctx);
		tuple_of(ctx, copy.netns, &key);
		exit = hold(&key, &copy);
	} else {
		return;
	}
	cv_count(exit);
	ask_for(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

static inline void take_over(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct cv_note *published, *stored;
	struct cv_tuple key;

	if (!pods.lookup(&netns))
		return;
	key.netns = netns;
	CV_ADDRESS(&key.local, ctx, remote);
	CV_ADDRESS(&key.remote, ctx, local);
	key.local_port = remote_port_of(ctx);
	key.remote_port = local_port_of(ctx);
	key.reserved = 0;
	published = inflight.lookup(&key);
	if (!published)
		return;
	stored = notes.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (stored) {
		*stored = *published;
		stored->kind = published->kind == CV_NOTE_CAPTURED ? CV_NOTE_ACCEPTED : CV_NOTE_SERVED;
		stored->direction = CV_DIR_NONE; /* the connecting socket's; ztunnel gives this one its own */
		if (stored->kind == CV_NOTE_ACCEPTED)
			ask_for(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
	}
	let_go(&key);
	cv_count(stored ? CV_COUNT_CARRY_MOVED : CV_COUNT_CARRY_FULL);
}

/* The connecting socket is on its way out: its key goes, unless the acceptor took it or it is another socket's. */
static inline void withdraw(struct bpf_sock_ops *ctx, struct cv_note *note)
{
	__u64 cookie = cv_socket_cookie(ctx);

	if (note->kind == CV_NOTE_PROBE) {
		struct cv_expected_key key;
		struct cv_expected *value;

		expected_of(ctx, &key);
		value = expected.lookup(&key);
		if (value && value->cookie == cookie)
			expected.delete(&key);
	} else if (note->kind == CV_NOTE_CAPTURED || note->kind == CV_NOTE_CLIENT) {
		struct cv_tuple key;
		struct cv_note *published;

		tuple_of(ctx, note->netns ? note->netns : bpf_get_netns_cookie(ctx), &key);
		published = inflight.lookup(&key);
		if (!published || published->cookie != cookie)
			return;
		let_go(&key);
		cv_count(CV_COUNT_CARRY_DROPPED);
	}
}

int carry(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;

	if (!sk)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		note = notes.sk_storage_get(sk, 0, 0);
		if (note)
			publish(ctx, note);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		take_over(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != BPF_TCP_CLOSE)
			break;
		note = notes.sk_storage_get(sk, 0, 0);
		if (note)
			withdraw(ctx, note);
		break;
	}
	return 1;
}
