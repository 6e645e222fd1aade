/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every program needs to say about a socket: addresses in the 16-byte form, counters, notes.
 */
#ifndef CULVERT_SOCKETS_H
#define CULVERT_SOCKETS_H

#include "tables.h"

enum {
	CV_IPPROTO_TCP = 6,
	CV_AF_INET = 2,
	CV_AF_INET6 = 10,
	CV_LOOPBACK_IFINDEX = 1, /* the kernel registers `lo` first in every netns */
};

enum cv_errno {
	CV_ENOMEM = 12,
	CV_EADDRINUSE = 98,
	CV_ENETUNREACH = 101,
};

#define CV_NETWORK16(x) ((__be16)__builtin_bswap16(x))
#define CV_NETWORK32(x) ((__be32)__builtin_bswap32(x))

/* BCC declares this helper as returning 32 bits, which cuts cookies. */
static __u64 (*cv_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
/* Helpers that BCC 0.26 numbers but does not declare. */
static int (*cv_set_retval)(int retval) = (void *)BPF_FUNC_set_retval;
static void *(*cv_mptcp_socket)(void *sk) = (void *)BPF_FUNC_skc_to_mptcp_sock;

static inline void cv_count(int slot)
{
	__u64 *counter = counters.lookup(&slot);

	if (counter)
		__sync_fetch_and_add(counter, 1);
}

/*
 * Reads a field of a program's context once, here. Left to itself the compiler joins the loads of two branches into
 * one through a computed pointer, which the verifier refuses.
 */
#define CV_READ(field) (*(volatile __u32 *)&(field))

static inline void cv_address_v4(struct cv_addr16 *ret, __be32 ip)
{
	__be32 words[4] = {0, 0, CV_NETWORK32(0xffff), ip};

	__builtin_memcpy(ret, words, sizeof(*ret));
}

static inline void cv_address_v6(struct cv_addr16 *ret, __be32 w0, __be32 w1, __be32 w2, __be32 w3)
{
	__be32 words[4] = {w0, w1, w2, w3};

	__builtin_memcpy(ret, words, sizeof(*ret));
}

/* The address of a socket of either family, from its IPv4 word and its four IPv6 words. */
static inline void cv_address_of(struct cv_addr16 *ret, __u32 family, __be32 ip, __be32 w0, __be32 w1, __be32 w2,
				 __be32 w3)
{
	if (family == CV_AF_INET)
		cv_address_v4(ret, ip);
	else
		cv_address_v6(ret, w0, w1, w2, w3);
}

/* The address of a context of either family; `side` is local or remote. */
#define CV_ADDRESS(ret, ctx, side)                                                                                     \
	cv_address_of(ret, (ctx)->family, CV_READ((ctx)->side##_ip4), CV_READ((ctx)->side##_ip6[0]),                   \
		      CV_READ((ctx)->side##_ip6[1]), CV_READ((ctx)->side##_ip6[2]), CV_READ((ctx)->side##_ip6[3]))

/* 32 bits of an address, in network order. */
static inline __be32 cv_word(const struct cv_addr16 *address, int index)
{
	__be32 word;

	__builtin_memcpy(&word, address->b + 4 * index, sizeof(word));
	return word;
}

static inline bool cv_is_v4(const struct cv_addr16 *address)
{
	return cv_word(address, 0) == 0 && cv_word(address, 1) == 0 && cv_word(address, 2) == CV_NETWORK32(0xffff);
}

static inline bool cv_same(const struct cv_addr16 *a, const struct cv_addr16 *b)
{
	return cv_word(a, 0) == cv_word(b, 0) && cv_word(a, 1) == cv_word(b, 1) && cv_word(a, 2) == cv_word(b, 2) &&
	       cv_word(a, 3) == cv_word(b, 3);
}

static inline bool cv_is_loopback(const struct cv_addr16 *address)
{
	if (cv_is_v4(address))
		return address->b[12] == 127;
	return cv_word(address, 0) == 0 && cv_word(address, 1) == 0 && cv_word(address, 2) == 0 &&
	       cv_word(address, 3) == CV_NETWORK32(1);
}

/*
 * Stores a note on a socket, and on the MPTCP socket above it, which is the one that getpeername sees. False when the
 * kernel has no room, in which case neither socket keeps an older note.
 */
static inline bool cv_note_put(struct bpf_sock *sk, const struct cv_note *note)
{
	struct cv_note *stored = notes.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!stored)
		return false;
	*stored = *note;
#ifdef CV_MPTCP
	void *mptcp = cv_mptcp_socket(sk);
	if (mptcp) {
		stored = notes.sk_storage_get(mptcp, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!stored) {
			notes.sk_storage_delete(sk);
			return false;
		}
		*stored = *note;
	}
#endif
	return true;
}

static inline void cv_note_delete(struct bpf_sock *sk)
{
	notes.sk_storage_delete(sk);
#ifdef CV_MPTCP
	void *mptcp = cv_mptcp_socket(sk);
	if (mptcp)
		notes.sk_storage_delete(mptcp);
#endif
}

#endif
