/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sk_lookup, attached to the netns of each enrolled pod: who answers a TCP connection that arrives from outside.
 *
 * What the pod sends to itself passes: its own doings, or ztunnel dialling the application. So does a tuple that a
 * connecting socket of this node announced: the node's own probes. All else goes to ztunnel's listeners in this pod,
 * port 15008 to the one that speaks HBONE. While ztunnel is away the connection is refused (RST), unless the pod's
 * `fallback` says that anybody may connect to it; 15008 is refused then too.
 *
 * Fails closed: an address that nobody announced and a listener that does not take the socket are refused.
 */
#include "sockets.h"

enum { CV_SK_NO_REUSEPORT = BPF_SK_LOOKUP_F_NO_REUSEPORT }; /* or a leaving ztunnel would be chosen again */

/*
 * A connection of the pod to its own address goes over `lo` but is said to arrive on the interface that holds the
 * address. It is known by its source: from outside, IPv4 refuses such a source as martian, and a SYN that fakes it in
 * IPv6 never gets to see the answer.
 */
static inline bool is_from_itself(const struct cv_addr16 *local, struct cv_addr16 *remote)
{
	struct cv_address *here, *there;
	struct cv_addr16 key = *local;

	if (cv_same(local, remote))
		return true;
	here = addresses.lookup(&key);
	there = addresses.lookup(remote);
	return here && there && here->netns == there->netns;
}

static inline bool is_expected(struct bpf_sk_lookup *ctx, const struct cv_addr16 *local, const struct cv_addr16 *remote,
			       __u64 netns)
{
	struct cv_expected_key key = {.local = *local, .remote = *remote};
	struct cv_expected *value;

	key.local_port = CV_NETWORK16((__u16)ctx->local_port);
	key.remote_port = ctx->remote_port;
	value = expected.lookup(&key);
	return value && value->netns == netns;
}

/* ztunnel has no listener: an application's port may pass if its pod says so. */
static inline int without_ztunnel(__u64 netns, __u32 port)
{
	__u32 *pass = fallback.lookup(&netns);

	if (port == CV_PORT_INBOUND && pass && *pass) {
		cv_count(CV_COUNT_INBOUND_FALLBACK);
		return SK_PASS;
	}
	cv_count(CV_COUNT_INBOUND_REFUSED);
	return SK_DROP;
}

static inline int steer(struct bpf_sk_lookup *ctx, __u64 netns, __u32 port)
{
	struct cv_listener_key key = {.netns = netns, .port = port};
	struct bpf_sock *listener = (struct bpf_sock *)listeners.lookup(&key);
	int failed;

	if (!listener)
		return without_ztunnel(netns, port);
	failed = bpf_sk_assign(ctx, listener, CV_SK_NO_REUSEPORT);
	bpf_sk_release(listener);
	cv_count(failed ? CV_COUNT_INBOUND_BAD_LISTENER : CV_COUNT_INBOUND_STEERED);
	return failed ? SK_DROP : SK_PASS;
}

int inbound(struct bpf_sk_lookup *ctx)
{
	struct cv_addr16 local, remote;
	struct cv_address *address;

	if (ctx->protocol != CV_IPPROTO_TCP)
		return SK_PASS;
	CV_ADDRESS(&local, ctx, local);
	CV_ADDRESS(&remote, ctx, remote);
	if (ctx->ingress_ifindex == CV_LOOPBACK_IFINDEX || is_from_itself(&local, &remote)) {
		cv_count(CV_COUNT_INBOUND_LOOPBACK);
		return SK_PASS;
	}
	address = addresses.lookup(&local);
	if (!address) {
		cv_count(CV_COUNT_INBOUND_UNKNOWN_ADDRESS);
		return SK_DROP;
	}
	if (is_expected(ctx, &local, &remote, address->netns)) {
		cv_count(CV_COUNT_INBOUND_EXPECTED);
		return SK_PASS;
	}
	if (ctx->local_port == CV_PORT_HBONE)
		return steer(ctx, address->netns, CV_PORT_HBONE);
	if (!(address->flags & CV_POD_INBOUND)) {
		cv_count(CV_COUNT_INBOUND_DRAINING);
		return SK_PASS;
	}
	return steer(ctx, address->netns, CV_PORT_INBOUND);
}
