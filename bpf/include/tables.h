/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every map, declared once. The loader defines CV_MAPS, the directory in which all but `blank` are pinned by name.
 */
#ifndef CULVERT_TABLES_H
#define CULVERT_TABLES_H

#include "maps.h"

enum {
	CV_PODS_MAX = 1024,       /* pods of one node; Kubernetes stops at a few hundred */
	CV_ADDRESSES_MAX = 4096,  /* four addresses per pod */
	CV_INFLIGHT_MAX = 65536,  /* connections between connect and accept at one moment */
	CV_UNANSWERED_MAX = 8192, /* of these of one pod: twice what the queue of ztunnel's listener holds */
	CV_EXPECTED_MAX = 65536,  /* open probe connections of the node */
	CV_LISTENERS_MAX = 2048,  /* two per pod */
	CV_WORKLOADS_MAX = 65536, /* addresses that this node has heard of */
	CV_EDGES_MAX = 65536,
};

typedef __u64 cv_netns_cookie;

/* Memory is taken per entry: most nodes never come near the bounds above. */
#define CV_TABLE(type, key, value, name, max, flags)                                                                   \
	BPF_TABLE_PINNED(type, key, value, name, max, CV_MAPS "/" #name, flags)

CV_TABLE("sk_storage", int, struct cv_note, notes, 0, BPF_F_NO_PREALLOC);
CV_TABLE("sk_storage", int, struct cv_flow, flows, 0, BPF_F_NO_PREALLOC);
CV_TABLE("hash", struct cv_tuple, struct cv_note, inflight, CV_INFLIGHT_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("hash", cv_netns_cookie, __s32, unanswered, CV_PODS_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("hash", struct cv_expected_key, struct cv_expected, expected, CV_EXPECTED_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("hash", cv_netns_cookie, struct cv_pod, pods, CV_PODS_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("hash", struct cv_addr16, struct cv_address, addresses, CV_ADDRESSES_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("hash", cv_netns_cookie, __u32, fallback, CV_PODS_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("sockhash", struct cv_listener_key, __u64, listeners, CV_LISTENERS_MAX, 0);
CV_TABLE("array", int, struct cv_node, node, 1, 0);
CV_TABLE("hash", struct cv_addr16, __u32, workloads, CV_WORKLOADS_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("percpu_hash", struct cv_edge, struct cv_edge_stats, edges, CV_EDGES_MAX, BPF_F_NO_PREALLOC);
CV_TABLE("percpu_array", int, __u64, counters, CV_COUNTERS, 0);

/* What a new edge starts from: 480 bytes of zeros do not fit on a program's stack. Never written. */
BPF_TABLE("array", int, struct cv_edge_stats, blank, 1);

#endif
