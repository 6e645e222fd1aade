/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: figures per edge, from the sockets whose note has a direction.
 *
 * ztunnel writes source, destination and direction into its sockets' notes: before connect on those that it opens,
 * after accept on those that it accepts, which are therefore opened here the first time they are seen with a direction.
 * What of a socket is in its edge already stands in `flows`, apart from the note, so that a note that ztunnel rewrites
 * loses nothing. Bytes are payload: the kernel's SYN and FIN are taken off. An application's own captured socket
 * counts only when it fails, that is when ztunnel was not there to accept it.
 *
 * Decides about no connection. When there is no room the connection goes on uncounted, and that is counted.
 */
#include "edges.h"

enum {
	CV_SAMPLE_NS = 1000000000, /* a socket's figures reach its edge at most once a second, and at its end */
	CV_TCP_FIN = 0x01,
};

static inline void want(struct bpf_sock_ops *ctx, int flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | flags);
}

static inline bool is_counted(const struct cv_note *note)
{
	return note->direction != CV_DIR_NONE && note->kind != CV_NOTE_CAPTURED;
}

static inline struct cv_edge_stats *stats_of(const struct cv_note *note, __u32 direction)
{
	return cv_edge_of(note->source, note->destination, direction);
}

static inline __u64 less(__u64 figure, __u64 part)
{
	return figure > part ? figure - part : 0;
}

/* Is our FIN among the acknowledged bytes? The acknowledgement is counted before the state changes. */
static inline bool is_fin_acked(struct bpf_sock_ops *ctx, const struct cv_flow *flow)
{
	if (flow->flags & CV_FLOW_FIN_ACKED)
		return true;
	if (ctx->state != BPF_TCP_FIN_WAIT1 && ctx->state != BPF_TCP_CLOSING && ctx->state != BPF_TCP_LAST_ACK)
		return false;
	return ctx->snd_una == ctx->snd_nxt;
}

/* Bytes and retransmits since the last time. */
static inline void settle(struct bpf_sock_ops *ctx, struct cv_flow *flow, struct cv_edge_stats *stats)
{
	bool is_active = flow->flags & CV_FLOW_ACTIVE;
	__u64 sent = less(ctx->bytes_acked, is_active + is_fin_acked(ctx, flow));
	__u64 received = less(ctx->bytes_received, !!(flow->flags & CV_FLOW_FIN_RECEIVED));
	__u64 retransmits = ctx->total_retrans;
	__u64 more_sent = less(sent, flow->sent);
	__u64 more_received = less(received, flow->received);

	/* An accepted socket stands at the destination's end: what it receives comes from the source. */
	cv_add(is_active ? &stats->sent : &stats->received, more_sent);
	cv_add(is_active ? &stats->received : &stats->sent, more_received);
	cv_add(&stats->retransmits, less(retransmits, flow->retransmits));
	flow->sent += more_sent;
	flow->received += more_received;
	flow->retransmits = retransmits;
}

static inline void sample_rtt(struct bpf_sock_ops *ctx, struct cv_edge_stats *stats)
{
	__u32 srtt_us = ctx->srtt_us >> 3; /* the kernel keeps it in eighths */

	if (srtt_us)
		cv_observe(stats->rtt_us, &stats->rtt_us_sum, srtt_us);
}

static inline void open_once(struct cv_flow *flow, struct cv_edge_stats *stats)
{
	if (flow->opened)
		return;
	flow->opened = 1;
	cv_add(&stats->opened, 1);
}

static inline void on_connect(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 now)
{
	struct cv_note *note = notes.sk_storage_get(sk, 0, 0);
	struct cv_flow *flow;

	if (!note)
		return;
	if (note->kind == CV_NOTE_CAPTURED) {
		want(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
		return;
	}
	if (!is_counted(note))
		return;
	flow = flows.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!flow) {
		cv_count(CV_COUNT_EDGE_OVERFLOW);
		return;
	}
	struct cv_flow fresh = {.connect_ns = now, .flags = CV_FLOW_ACTIVE};
	*flow = fresh;
	want(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
}

static inline void on_connected(struct bpf_sock *sk, __u64 now)
{
	struct cv_note *note = notes.sk_storage_get(sk, 0, 0);
	struct cv_flow *flow = flows.sk_storage_get(sk, 0, 0);
	struct cv_edge_stats *stats;

	if (!note || !flow || !is_counted(note))
		return;
	stats = stats_of(note, note->direction);
	if (!stats)
		return;
	open_once(flow, stats);
	cv_observe(stats->connect_us, &stats->connect_us_sum, less(now, flow->connect_ns) / 1000);
}

static inline void on_rtt(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 now)
{
	struct cv_flow *flow = flows.sk_storage_get(sk, 0, 0);
	struct cv_note *note;
	struct cv_edge_stats *stats;

	if (!flow || ctx->state == BPF_TCP_SYN_SENT || less(now, flow->sampled_ns) < CV_SAMPLE_NS)
		return; /* the SYN-ACK's own sample is not yet in the smoothed figure */
	note = notes.sk_storage_get(sk, 0, 0);
	if (!note || !is_counted(note))
		return;
	stats = stats_of(note, note->direction);
	if (!stats)
		return;
	flow->sampled_ns = now;
	open_once(flow, stats);
	settle(ctx, flow, stats);
	sample_rtt(ctx, stats);
}

static inline int failure_of(struct bpf_sock_ops *ctx)
{
	if (ctx->segs_in) /* an answer, and it was not a SYN-ACK */
		return CV_FAIL_REFUSED;
	return ctx->total_retrans ? CV_FAIL_TIMEOUT : CV_FAIL_ABORTED;
}

static inline void on_failed(struct bpf_sock_ops *ctx, const struct cv_note *note)
{
	__u32 direction = note->kind == CV_NOTE_CAPTURED ? CV_DIR_OUTBOUND : note->direction;
	struct cv_edge_stats *stats;

	if (direction == CV_DIR_NONE)
		return;
	stats = stats_of(note, direction);
	if (!stats)
		return;
	switch (failure_of(ctx)) {
	case CV_FAIL_REFUSED:
		cv_add(&stats->failed[CV_FAIL_REFUSED], 1);
		break;
	case CV_FAIL_TIMEOUT:
		cv_add(&stats->failed[CV_FAIL_TIMEOUT], 1);
		break;
	default:
		cv_add(&stats->failed[CV_FAIL_ABORTED], 1);
	}
}

static inline void on_closed(struct bpf_sock_ops *ctx, const struct cv_note *note, struct cv_flow *flow)
{
	struct cv_edge_stats *stats;

	if (!is_counted(note))
		return;
	stats = stats_of(note, note->direction);
	if (!stats)
		return;
	open_once(flow, stats);
	settle(ctx, flow, stats);
	if (!flow->sampled_ns)
		sample_rtt(ctx, stats);
	cv_add(&stats->closed, 1);
}

/* Which FIN the kernel's byte counters hold from this step on. */
static inline __u32 fin_of(__u32 new)
{
	if (new == BPF_TCP_CLOSE_WAIT || new == BPF_TCP_CLOSING)
		return CV_FLOW_FIN_RECEIVED;
	return new == BPF_TCP_FIN_WAIT2 ? CV_FLOW_FIN_ACKED : 0;
}

static inline void on_state(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 old, __u32 new)
{
	struct cv_note *note = notes.sk_storage_get(sk, 0, 0);
	struct cv_flow *flow;

	if (!note)
		return;
	if (old == BPF_TCP_SYN_SENT && new == BPF_TCP_CLOSE) {
		on_failed(ctx, note);
		flows.sk_storage_delete(sk);
		return;
	}
	/* An accepted socket is remembered before it has a direction: its FIN may come first. */
	if (note->kind != CV_NOTE_ACCEPTED && !is_counted(note))
		return;
	flow = flows.sk_storage_get(sk, 0, note->kind == CV_NOTE_ACCEPTED ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!flow) {
		cv_count(CV_COUNT_EDGE_OVERFLOW);
		return;
	}
	flow->flags |= fin_of(new);
	if (new == BPF_TCP_FIN_WAIT1) /* a reset and a FIN both end FIN_WAIT2: look at what arrives from here on */
		want(ctx, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
	if (new == BPF_TCP_CLOSE) {
		on_closed(ctx, note, flow);
		flows.sk_storage_delete(sk);
	}
}

static inline void on_segment(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct cv_flow *flow;

	if (!(ctx->skb_tcp_flags & CV_TCP_FIN))
		return;
	flow = flows.sk_storage_get(sk, 0, 0);
	if (flow)
		flow->flags |= CV_FLOW_FIN_RECEIVED;
}

int flow(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		on_connect(ctx, sk, bpf_ktime_get_ns());
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		on_connected(sk, bpf_ktime_get_ns());
		break;
	case BPF_SOCK_OPS_RTT_CB:
		on_rtt(ctx, sk, bpf_ktime_get_ns());
		break;
	case BPF_SOCK_OPS_STATE_CB:
		on_state(ctx, sk, ctx->args[0], ctx->args[1]);
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		on_segment(ctx, sk);
		break;
	}
	return 1;
}
