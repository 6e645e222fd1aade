/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup connect4 and connect6, at the cgroup2 root: where a TCP connect of an enrolled pod goes.
 *
 * To the network: rewritten to ztunnel's listener on the pod's own loopback, port 15001; a note on the socket keeps
 * what was dialled. To the pod itself or multicast: untouched. ztunnel's own sockets, known by the note that ztunnel
 * wrote on them: untouched. Connects of the node's own netns to an enrolled pod get a note that says probe. Everything
 * else on the machine passes, and a socket never keeps the note of an earlier connect.
 *
 * Fails closed: what cannot be noted is refused with an errno. While ztunnel is away the rewritten address has no
 * listener, so that the connect is refused too.
 */
#include "edges.h"

enum { /* of the kernel's <asm-generic/socket.h> */
       CV_SOL_SOCKET = 1,
       CV_SO_BINDTODEVICE = 25,
};

enum cv_connect {
	CV_CONNECT_REFUSE = 0,
	CV_CONNECT_PASS = 1,
	CV_CONNECT_CAPTURE = 2,
};

static inline __u32 workload_of(const struct cv_addr16 *address)
{
	struct cv_addr16 key = *address;
	__u32 *number = workloads.lookup(&key);

	return number ? *number : 0;
}

static inline int refuse(const struct cv_note *note, int slot, int error)
{
	struct cv_edge_stats *stats = cv_edge_of(note->source, note->destination, CV_DIR_OUTBOUND);

	if (stats)
		cv_add(&stats->failed[CV_FAIL_DENIED], 1);
	cv_count(slot);
	cv_set_retval(-error);
	return CV_CONNECT_REFUSE;
}

/* A destination that is the pod itself, or that TCP cannot have. */
static inline bool stays_in_pod(__u64 netns, const struct cv_pod *pod, struct cv_addr16 *destination)
{
	struct cv_address *address;

	if (cv_is_loopback(destination) || cv_same(destination, &pod->ip4) || cv_same(destination, &pod->ip6))
		return true;
	if (cv_is_v4(destination)) { /* 0.0.0.0, multicast, broadcast */
		__be32 ip = cv_word(destination, 3);

		if (ip == 0 || (destination->b[12] & 0xf0) == 0xe0 || ip == CV_NETWORK32(0xffffffff))
			return true;
	} else if (destination->b[0] == 0xff || !(cv_word(destination, 0) | cv_word(destination, 1) |
						  cv_word(destination, 2) | cv_word(destination, 3))) {
		return true;
	}
	address = addresses.lookup(destination);
	return address && address->netns == netns;
}

/* A socket bound to a device cannot reach loopback. */
static inline bool free_of_device(struct bpf_sock_addr *ctx, struct bpf_sock *sk)
{
	char none[4] = {};

	return sk->bound_dev_if == 0 || bpf_setsockopt(ctx, CV_SOL_SOCKET, CV_SO_BINDTODEVICE, none, sizeof(none)) == 0;
}

static inline int capture(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u64 netns, const struct cv_pod *pod,
			  const struct cv_addr16 *destination)
{
	struct cv_note note = {
		.cookie = cv_socket_cookie(ctx),
		.netns = netns,
		.orig = *destination,
		.own = cv_is_v4(destination) ? pod->ip4 : pod->ip6,
		.orig_port = ctx->user_port,
		.kind = CV_NOTE_CAPTURED,
		.source = workload_of(cv_is_v4(destination) ? &pod->ip4 : &pod->ip6),
		.destination = workload_of(destination),
	};

	if (!free_of_device(ctx, sk)) {
		cv_note_delete(sk);
		return refuse(&note, CV_COUNT_CONNECT_REFUSED_DEVICE, CV_ENETUNREACH);
	}
	if (!cv_note_put(sk, &note))
		return refuse(&note, CV_COUNT_CONNECT_REFUSED_NOTE, CV_ENOMEM);
	cv_count(CV_COUNT_CONNECT_CAPTURED);
	return CV_CONNECT_CAPTURE;
}

/* A connect in a netns that is not enrolled. Only the node's own towards a local pod is of interest. */
static inline int pass_foreign(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u64 netns,
			       struct cv_addr16 *destination)
{
	int first = 0;
	struct cv_node *self = node.lookup(&first);
	struct cv_address *address;

	cv_note_delete(sk);
	if (!self || self->netns == 0 || self->netns != netns)
		return CV_CONNECT_PASS;
	address = addresses.lookup(destination);
	if (!address)
		return CV_CONNECT_PASS;
	struct cv_note note = {
		.cookie = cv_socket_cookie(ctx),
		.netns = address->netns,
		.orig = *destination,
		.orig_port = ctx->user_port,
		.kind = CV_NOTE_PROBE,
	};
	/* Without room for it the probe is an ordinary connection of a stranger, and may be refused as one. */
	cv_count(cv_note_put(sk, &note) ? CV_COUNT_CONNECT_PROBE : CV_COUNT_CARRY_FULL);
	return CV_CONNECT_PASS;
}

static inline int decide(struct bpf_sock_addr *ctx, struct cv_addr16 *destination)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct cv_pod *pod = pods.lookup(&netns);
	struct cv_note *note;

	if (!sk)
		return CV_CONNECT_PASS;
	if (!pod)
		return pass_foreign(ctx, sk, netns, destination);
	note = notes.sk_storage_get(sk, 0, 0);
	if (note && (note->kind == CV_NOTE_OWN || note->kind == CV_NOTE_CLIENT)) {
		cv_count(CV_COUNT_CONNECT_OWN);
		return CV_CONNECT_PASS;
	}
	if (!(pod->flags & CV_POD_CAPTURE) || stays_in_pod(netns, pod, destination)) {
		cv_note_delete(sk);
		cv_count(CV_COUNT_CONNECT_PASSED);
		return CV_CONNECT_PASS;
	}
	return capture(ctx, sk, netns, pod, destination);
}

/*
 * Where on 127.0.0.0/8 a destination's connections go. All of it is ztunnel's; spreading keeps connections that share
 * a bound source port apart, which would otherwise have one and the same 4-tuple.
 */
static inline __be32 loopback_for(const struct cv_addr16 *destination, __be16 port)
{
	__u32 hash = (cv_word(destination, 0) ^ cv_word(destination, 1)) * 0x85ebca6bU;

	hash = (hash ^ cv_word(destination, 2) ^ cv_word(destination, 3)) * 0x9e3779b1U;
	hash = (hash ^ (hash >> 15) ^ port) * 0xc2b2ae35U;
	hash >>= 8;
	if (hash == 0 || hash == 0xffffff) /* the network's own and its broadcast address */
		hash = 1;
	return CV_NETWORK32(0x7f000000U | hash);
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct cv_addr16 destination;
	int verdict;

	if (ctx->protocol != CV_IPPROTO_TCP)
		return CV_CONNECT_PASS;
	cv_address_v4(&destination, ctx->user_ip4);
	verdict = decide(ctx, &destination);
	if (verdict != CV_CONNECT_CAPTURE)
		return verdict;
	ctx->user_ip4 = loopback_for(&destination, ctx->user_port);
	ctx->user_port = CV_NETWORK16(CV_PORT_OUTBOUND);
	return CV_CONNECT_PASS;
}

int connect6(struct bpf_sock_addr *ctx)
{
	struct cv_addr16 destination;
	int verdict;

	if (ctx->protocol != CV_IPPROTO_TCP)
		return CV_CONNECT_PASS;
	cv_address_v6(&destination, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
	verdict = decide(ctx, &destination);
	if (verdict != CV_CONNECT_CAPTURE)
		return verdict;
	if (cv_is_v4(&destination)) { /* stays v4-mapped: such a socket may have no IPv6 to speak */
		ctx->user_ip6[3] = loopback_for(&destination, ctx->user_port);
	} else {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = 0;
		ctx->user_ip6[3] = CV_NETWORK32(1);
	}
	ctx->user_port = CV_NETWORK16(CV_PORT_OUTBOUND);
	return CV_CONNECT_PASS;
}
