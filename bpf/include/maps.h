/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Keys and values of every map that kernel and user space share.
 *
 * Fixed width, no padding, network order only where a type says __be. Addresses are always 16 bytes: IPv4 stands as
 * ::ffff:a.b.c.d. Programs include this file; the engine includes it with the kernel's uapi types; bpf/layout.py
 * restates it for Python and a test holds the three equal.
 */
#ifndef CULVERT_MAPS_H
#define CULVERT_MAPS_H

enum cv_ports {
	CV_PORT_OUTBOUND = 15001, /* captured connections, loopback only */
	CV_PORT_INBOUND = 15006,  /* plain connections from the network */
	CV_PORT_HBONE = 15008,    /* HBONE from the network */
};

/* What a socket's note says. Only CAPTURED and CLIENT are carried to an acceptor. */
enum cv_note_kind {
	CV_NOTE_NONE = 0,
	CV_NOTE_CAPTURED = 1, /* an application's connect, rewritten: orig = what it dialled */
	CV_NOTE_OWN = 2,      /* ztunnel's own socket: never captured, may bind mesh ports */
	CV_NOTE_CLIENT = 3,   /* ztunnel towards the application: orig = the true client */
	CV_NOTE_PROBE = 4,    /* a socket of the node's own netns towards a local pod */
	CV_NOTE_ACCEPTED = 5, /* moved from CAPTURED, on ztunnel's accepted socket */
	CV_NOTE_SERVED = 6,   /* moved from CLIENT, on the application's accepted socket */
};

enum cv_direction {
	CV_DIR_NONE = 0,
	CV_DIR_OUTBOUND = 1, /* reported at the source workload's node */
	CV_DIR_INBOUND = 2,  /* reported at the destination workload's node */
	CV_DIR_TUNNEL = 3,   /* ztunnel's socket on the wire, outbound side */
};

struct cv_addr16 {
	__u8 b[16];
};

/* sk_storage `notes`: one per socket. User space writes it by fd, before connect or bind. */
struct cv_note {
	__u64 cookie;          /* socket cookie of the connecting socket */
	__u64 netns;           /* netns cookie in which the connection will be accepted */
	struct cv_addr16 orig; /* CAPTURED, ACCEPTED: destination dialled; CLIENT, SERVED: true client */
	struct cv_addr16 own;  /* CAPTURED, ACCEPTED: the pod's address of that family; zero: it has none */
	__be16 orig_port;
	__u8 kind;      /* enum cv_note_kind */
	__u8 direction; /* enum cv_direction: flow metrics count this socket when not NONE */
	__u32 source;   /* workload number, 0 unknown */
	__u32 destination;
	__u32 reserved;
};

/* hash `inflight`: a note between connect and accept. Addresses and ports as the connecting socket sees them. */
struct cv_tuple {
	__u64 netns;
	struct cv_addr16 local;
	struct cv_addr16 remote;
	__be16 local_port;
	__be16 remote_port;
	__u32 reserved;
};

/* hash `expected`: tuples that `inbound` lets through, as the pod sees them. */
struct cv_expected_key {
	struct cv_addr16 local;
	struct cv_addr16 remote;
	__be16 local_port;
	__be16 remote_port;
	__u32 reserved;
};

struct cv_expected {
	__u64 cookie; /* of the connecting socket, whose end removes the entry */
	__u64 netns;  /* cookie of the pod, whose end removes it too */
};

enum cv_pod_flag {
	CV_POD_CAPTURE = 1, /* outbound: connects are rewritten */
	CV_POD_INBOUND = 2, /* inbound: arriving connections are steered */
};

/* Mesh ports that a process of the pod wanted to bind. */
enum cv_refused_port {
	CV_REFUSED_OUTBOUND = 1,
	CV_REFUSED_INBOUND = 2,
	CV_REFUSED_HBONE = 4,
};

/* hash `pods`, key __u64 netns cookie. */
struct cv_pod {
	struct cv_addr16 ip4; /* v4-mapped, zero when the pod has none */
	struct cv_addr16 ip6;
	__u32 flags;         /* enum cv_pod_flag */
	__u32 refused_ports; /* enum cv_refused_port, set by `ports`; zero again when user space writes the entry */
};

/* hash `addresses`, key struct cv_addr16: which pod an address of this node belongs to. */
struct cv_address {
	__u64 netns;
	__u32 flags; /* enum cv_pod_flag */
	__u32 reserved;
};

/* hash `fallback`, key __u64 netns cookie, value __u32: 1 = let inbound pass while ztunnel is away. */

/* sockhash `listeners`: ztunnel's in-pod listeners. Value __u64 (a socket; user space reads its cookie). */
struct cv_listener_key {
	__u64 netns;
	__u32 port; /* host order: CV_PORT_INBOUND or CV_PORT_HBONE */
	__u32 reserved;
};

/* array[1] `node`. */
struct cv_node {
	__u64 netns; /* cookie of the node's own netns, whose sockets may probe pods; 0: none */
	__u64 reserved;
};

/* hash `workloads`, key struct cv_addr16: number of the workload or service of an address, for edges that no note
 * names. Value __u32. */

/* per-CPU hash `edges`. */
struct cv_edge {
	__u32 source;
	__u32 destination;
	__u32 direction; /* enum cv_direction */
	__u32 reserved;
};

/*
 * hash `unanswered`, key __u64 netns cookie, value __s32: keys that a pod's connections hold in `inflight`. Below zero
 * when the pod was un-enrolled and enrolled again meanwhile.
 */

enum cv_failure {
	CV_FAIL_REFUSED = 0, /* RST to our SYN */
	CV_FAIL_TIMEOUT = 1, /* SYN retransmitted, never answered */
	CV_FAIL_ABORTED = 2, /* the connecting side gave up */
	CV_FAIL_DENIED = 3,  /* a program refused the connect */
	CV_FAILURES = 4,
};

enum { CV_HISTOGRAM_BUCKETS = 24 }; /* bucket i counts values in [2^i, 2^(i+1)) microseconds */

struct cv_edge_stats {
	__u64 opened;
	__u64 closed;
	__u64 failed[4]; /* by enum cv_failure */
	__u64 sent;      /* payload bytes from source towards destination, whichever end of the socket counts them */
	__u64 received;  /* payload bytes from destination towards source */
	__u64 retransmits;
	__u64 connect_us_sum;
	__u64 rtt_us_sum;
	__u64 connect_us[24];
	__u64 rtt_us[24];
};

enum cv_flow_flag {
	CV_FLOW_ACTIVE = 1,       /* this socket connected: the kernel's bytes_acked holds its SYN too */
	CV_FLOW_FIN_ACKED = 2,    /* bytes_acked holds our FIN */
	CV_FLOW_FIN_RECEIVED = 4, /* bytes_received holds their FIN */
};

/*
 * sk_storage `flows`: what of a counted socket is in `edges` already, as the socket itself sees it: `sent` is what
 * left this socket (payload only, without the SYN that bytes_acked holds on an ACTIVE one).
 */
struct cv_flow {
	__u64 connect_ns;
	__u64 sent;
	__u64 received;
	__u64 retransmits;
	__u64 sampled_ns;
	__u32 opened;
	__u32 flags; /* enum cv_flow_flag */
};

/* per-CPU array `counters`: one slot per exit of a program. */
enum cv_counter {
	CV_COUNT_CONNECT_CAPTURED = 0,
	CV_COUNT_CONNECT_PASSED,         /* enrolled pod: loopback, own address or multicast; or it drains */
	CV_COUNT_CONNECT_OWN,            /* ztunnel's own socket */
	CV_COUNT_CONNECT_PROBE,          /* the node's netns towards a local pod */
	CV_COUNT_CONNECT_REFUSED_NOTE,   /* no room for the note */
	CV_COUNT_CONNECT_REFUSED_DEVICE, /* bound to a device that cannot be cleared */
	CV_COUNT_BIND_REFUSED,
	CV_COUNT_CARRY_PUBLISHED,
	CV_COUNT_CARRY_MOVED,
	CV_COUNT_CARRY_DROPPED,    /* connector closed before anyone accepted */
	CV_COUNT_CARRY_FULL,       /* `inflight` or `expected` full, or no room for the acceptor's note */
	CV_COUNT_INBOUND_LOOPBACK, /* the pod with itself */
	CV_COUNT_INBOUND_EXPECTED,
	CV_COUNT_INBOUND_STEERED,
	CV_COUNT_INBOUND_FALLBACK,        /* ztunnel away, pod lets pass */
	CV_COUNT_INBOUND_REFUSED,         /* ztunnel away, pod refuses */
	CV_COUNT_INBOUND_UNKNOWN_ADDRESS, /* an address of the pod that nobody announced: refused */
	CV_COUNT_INBOUND_BAD_LISTENER,    /* sk_assign failed: refused */
	CV_COUNT_EDGE_OVERFLOW,    /* `edges` full: counted on the edge from 0 to 0; or no room to count a socket */
	CV_COUNT_INBOUND_DRAINING, /* pod drains: its own listeners answer, save for 15008 */
	CV_COUNT_CARRY_POD_FULL,   /* one pod has its share of `inflight` unanswered */
	CV_COUNT_GUARD_PASSED,     /* ztunnel opens a connection from a pod */
	CV_COUNT_GUARD_DROPPED_STRANGER,   /* a socket that is not ztunnel's opens one past the capture */
	CV_COUNT_GUARD_DROPPED_FORWARDED,  /* so does what no socket of the pod sent: a netns nested in it */
	CV_COUNT_GUARD_DROPPED_REWRITTEN,  /* ztunnel's, and changed on its way out of the pod */
	CV_COUNT_GUARD_DROPPED_UNREADABLE, /* TCP whose flags cannot be read */
	CV_COUNTERS,
};

#endif
