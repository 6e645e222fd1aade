/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tcx ingress on the node's end of each enrolled pod's link: no TCP connection is opened from the pod but by ztunnel.
 *
 * All that leaves the pod passes here, whoever made it: sockets, raw and packet sockets (also those that bypass the
 * queues of the pod's own device), namespaces nested in the pod, the pod's own nftables. The pod cannot reach this end
 * of its link. A segment that opens a connection (SYN without ACK) passes when the socket that sent it carries
 * ztunnel's note OWN and the segment says what that socket says; the kernel keeps the socket with the packet across
 * the link. Everything else passes: connections that are older than the capture, answers, resets, what is not TCP.
 *
 * Fails closed: TCP whose flags cannot be read (split into fragments, behind too many headers or tags) is dropped.
 * Only exits that decide about an opening are counted; all other packets are the pod's traffic itself.
 */
#include "sockets.h"

enum cv_guard { /* enum tcx_action_base; -1 also goes on to the next filter of a clsact */
		CV_GUARD_NEXT = -1,
		CV_GUARD_DROP = 2,
};

enum {
	CV_ETH_IPV4 = 0x0800,
	CV_ETH_IPV6 = 0x86dd,
	CV_ETH_8021Q = 0x8100,
	CV_ETH_8021AD = 0x88a8,
	CV_TCP_SYN = 0x02,
	CV_TCP_ACK = 0x10,
	CV_TCP_FLAGS_END = 14, /* bytes of a TCP header up to and with its flags */
	CV_FRAGMENT_SAFE = 16, /* a fragment from here on cannot hold the flags: fragments begin at multiples of 8 */
	CV_EXTENSIONS_MAX = 6, /* IPv6 headers before the transport; more are nobody's in earnest */
	CV_EXTENSION_HOP = 0,
	CV_EXTENSION_ROUTING = 43,
	CV_EXTENSION_FRAGMENT = 44,
	CV_EXTENSION_AUTH = 51,
	CV_EXTENSION_DESTINATION = 60,
	CV_EXTENSION_MOBILITY = 135,
	CV_EXTENSION_HIP = 139,
	CV_EXTENSION_SHIM6 = 140,
};

struct ipv4_header {
	__u8 version_length;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 source;
	__be32 destination;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 length;
	__u8 next;
	__u8 hops;
	__be32 source[4];
	__be32 destination[4];
};

struct extension {
	__u8 next;
	__u8 length;     /* in units of 8 bytes beyond the first; of 4 bytes beyond two in AUTH */
	__be16 fragment; /* of a fragment header: offset in bytes, its low three bits are flags */
};

struct tcp_header {
	__be16 source_port;
	__be16 destination_port;
	__be32 sequence;
	__be32 acknowledged;
	__u8 length;
	__u8 flags;
};

static inline bool reads(struct __sk_buff *ctx, __u32 offset, void *ret, __u32 size)
{
	return bpf_skb_load_bytes_relative(ctx, offset, ret, size, BPF_HDR_START_NET) == 0;
}

static inline int drop(int slot)
{
	cv_count(slot);
	return CV_GUARD_DROP;
}

/* ztunnel's socket, or NULL and why it is none. */
static inline struct bpf_sock *sender_of(struct __sk_buff *ctx, int *ret_slot)
{
	struct bpf_sock *sk = ctx->sk;
	struct cv_note *note;

	*ret_slot = CV_COUNT_GUARD_DROPPED_FORWARDED;
	if (!sk)
		return NULL;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return NULL;
	*ret_slot = CV_COUNT_GUARD_DROPPED_STRANGER;
	note = notes.sk_storage_get(sk, 0, 0);
	return note && note->kind == CV_NOTE_OWN ? sk : NULL;
}

static inline bool has_ports_of(const struct tcp_header *tcp, struct bpf_sock *sk)
{
	return tcp->source_port == CV_NETWORK16((__u16)sk->src_port) && tcp->destination_port == (__be16)sk->dst_port;
}

static inline int opened(bool is_as_sent)
{
	if (!is_as_sent)
		return drop(CV_COUNT_GUARD_DROPPED_REWRITTEN);
	cv_count(CV_COUNT_GUARD_PASSED);
	return CV_GUARD_NEXT;
}

static inline bool opens(const struct tcp_header *tcp)
{
	return (tcp->flags & (CV_TCP_SYN | CV_TCP_ACK)) == CV_TCP_SYN;
}

static inline int guard4(struct __sk_buff *ctx)
{
	struct ipv4_header ip;
	struct tcp_header tcp;
	struct bpf_sock *sk;
	__u32 at;
	int slot;

	if (!reads(ctx, 0, &ip, sizeof(ip)))
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	if (ip.protocol != CV_IPPROTO_TCP)
		return CV_GUARD_NEXT;
	at = (CV_NETWORK16(ip.fragment) & 0x1fff) * 8;
	if (at >= CV_FRAGMENT_SAFE)
		return CV_GUARD_NEXT;
	if (at || !reads(ctx, (ip.version_length & 0xf) * 4, &tcp, CV_TCP_FLAGS_END))
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	if (!opens(&tcp))
		return CV_GUARD_NEXT;
	sk = sender_of(ctx, &slot);
	if (!sk)
		return drop(slot);
	return opened(has_ports_of(&tcp, sk) && ip.source == sk->src_ip4 && ip.destination == sk->dst_ip4);
}

static inline bool is_extension(__u8 header)
{
	return header == CV_EXTENSION_HOP || header == CV_EXTENSION_ROUTING || header == CV_EXTENSION_FRAGMENT ||
	       header == CV_EXTENSION_AUTH || header == CV_EXTENSION_DESTINATION || header == CV_EXTENSION_MOBILITY ||
	       header == CV_EXTENSION_HIP || header == CV_EXTENSION_SHIM6;
}

enum cv_walk {
	CV_WALK_TCP,   /* a TCP header stands there */
	CV_WALK_OTHER, /* what is there opens no connection */
	CV_WALK_UNREADABLE,
};

/* Where the TCP header of an IPv6 packet is. */
static inline int walk(struct __sk_buff *ctx, __u8 next, __u32 *ret)
{
	struct extension extension;
	__u32 offset = sizeof(struct ipv6_header);

#pragma unroll
	for (int i = 0; i < CV_EXTENSIONS_MAX; i++) {
		if (!is_extension(next))
			break;
		if (!reads(ctx, offset, &extension, sizeof(extension)))
			return CV_WALK_UNREADABLE;
		if (next == CV_EXTENSION_FRAGMENT) {
			__u32 at = CV_NETWORK16(extension.fragment) & 0xfff8;

			/* Further headers in a later fragment: nobody sends that, and it could hide flags. */
			if (at && is_extension(extension.next))
				return CV_WALK_UNREADABLE;
			if (at && (extension.next != CV_IPPROTO_TCP || at >= CV_FRAGMENT_SAFE))
				return CV_WALK_OTHER;
			if (at)
				return CV_WALK_UNREADABLE;
			offset += 8;
		} else if (next == CV_EXTENSION_AUTH) {
			offset += (extension.length + 2) * 4;
		} else {
			offset += (extension.length + 1) * 8;
		}
		next = extension.next;
	}
	*ret = offset;
	if (is_extension(next))
		return CV_WALK_UNREADABLE;
	return next == CV_IPPROTO_TCP ? CV_WALK_TCP : CV_WALK_OTHER;
}

static inline bool has_addresses_of(const struct ipv6_header *ip, struct bpf_sock *sk)
{
	return ip->source[0] == sk->src_ip6[0] && ip->source[1] == sk->src_ip6[1] && ip->source[2] == sk->src_ip6[2] &&
	       ip->source[3] == sk->src_ip6[3] && ip->destination[0] == sk->dst_ip6[0] &&
	       ip->destination[1] == sk->dst_ip6[1] && ip->destination[2] == sk->dst_ip6[2] &&
	       ip->destination[3] == sk->dst_ip6[3];
}

static inline int guard6(struct __sk_buff *ctx)
{
	struct ipv6_header ip;
	struct tcp_header tcp;
	struct bpf_sock *sk;
	__u32 offset = 0;
	int slot;

	if (!reads(ctx, 0, &ip, sizeof(ip)))
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	switch (walk(ctx, ip.next, &offset)) {
	case CV_WALK_OTHER:
		return CV_GUARD_NEXT;
	case CV_WALK_UNREADABLE:
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	}
	if (!reads(ctx, offset, &tcp, CV_TCP_FLAGS_END))
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	if (!opens(&tcp))
		return CV_GUARD_NEXT;
	sk = sender_of(ctx, &slot);
	if (!sk)
		return drop(slot);
	return opened(has_ports_of(&tcp, sk) && has_addresses_of(&ip, sk));
}

int guard(struct __sk_buff *ctx)
{
	switch (CV_NETWORK16((__u16)ctx->protocol)) {
	case CV_ETH_IPV4:
		return guard4(ctx);
	case CV_ETH_IPV6:
		return guard6(ctx);
	case CV_ETH_8021Q: /* a second tag: the kernel takes empty ones off after this hook */
	case CV_ETH_8021AD:
		return drop(CV_COUNT_GUARD_DROPPED_UNREADABLE);
	}
	return CV_GUARD_NEXT;
}
