/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The border between Python and the data path: everything that cffi sees, and nothing else.
 *
 * cffi reads this file with lines that start with '#' removed, so it may only use plain declarations. All calls are
 * made from Python's one thread; the workers behind the border never call back. Strings are NUL-terminated UTF-8 that
 * the callee copies. Functions return 0 or a negative errno unless they say otherwise.
 */
#ifndef CULVERT_BORDER_H
#define CULVERT_BORDER_H
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ words */

/* An address and port; IPv4 stands as ::ffff:a.b.c.d, the port is host order, all zero means none. */
struct cv_endpoint {
	uint8_t ip[16];
	uint16_t port;
};

/* Why a connection ended or was refused; mesh/reasons.py restates it and a test holds the two equal. */
enum cv_reason {
	CV_REASON_OK = 0,              /* both sides ended cleanly */
	CV_REASON_NO_NOTE,             /* a connection to 15001 that nobody captured */
	CV_REASON_SELF_CALL,           /* destination is one of the mesh's own ports */
	CV_REASON_UNKNOWN_SOURCE,      /* the pod is not (yet) announced by the controller */
	CV_REASON_UNKNOWN_PORT,        /* the service has no such port */
	CV_REASON_NO_HEALTHY_UPSTREAM, /* the service has no usable endpoint */
	CV_REASON_UNKNOWN_WAYPOINT,    /* a waypoint is configured and cannot be resolved */
	CV_REASON_UNSUPPORTED_NETWORK, /* endpoint on another network */
	CV_REASON_POLICY_DENIED,       /* refused by an AuthorizationPolicy or PeerAuthentication */
	CV_REASON_POLICY_CHANGED,      /* open, and denied by a policy applied later */
	CV_REASON_CONNECT_REFUSED,
	CV_REASON_CONNECT_TIMEOUT,
	CV_REASON_CONNECT_UNREACHABLE,
	CV_REASON_CONNECT_FAILED,
	CV_REASON_TLS_FAILED,
	CV_REASON_TLS_UNTRUSTED, /* the peer's certificate does not verify, or names nobody we expect */
	CV_REASON_HANDSHAKE_TIMEOUT,
	CV_REASON_IDENTITY_UNAVAILABLE, /* no certificate for the local identity in time */
	CV_REASON_PROTOCOL_ERROR,       /* garbage, or a violation of HTTP/2 */
	CV_REASON_BAD_REQUEST,          /* we answered 400 */
	CV_REASON_ADDRESS_MISMATCH,     /* CONNECT for an address that is not this pod: 400 */
	CV_REASON_PEER_DENIED,          /* the peer answered 401 */
	CV_REASON_PEER_UNAVAILABLE,     /* the peer answered 503 */
	CV_REASON_PEER_REJECTED,        /* the peer answered another status */
	CV_REASON_REQUEST_TIMEOUT,      /* no answer to our CONNECT in time */
	CV_REASON_RESET_DOWNSTREAM,     /* the connecting side reset */
	CV_REASON_RESET_UPSTREAM,       /* the accepting side reset */
	CV_REASON_TUNNEL_LOST,          /* the tunnel ended under its streams */
	CV_REASON_DRAINED,              /* cut at the end of a drain */
	CV_REASON_POD_GONE,
	CV_REASON_LIMIT_CONNECTIONS, /* per-pod bound */
	CV_REASON_LIMIT_STREAMS,
	CV_REASON_LIMIT_HANDSHAKES,
	CV_REASON_LIMIT_DESCRIPTORS,   /* EMFILE, ENFILE, ENOMEM, ENOBUFS */
	CV_REASON_LIMIT_SHARE,         /* this peer has its share of the per-pod bound: what is left is for others */
	CV_REASON_CERTIFICATE_EXPIRED, /* the tunnel outlived what proved who is at its ends */
	CV_REASON_INTERNAL,
	CV_REASONS,
};

/* ----------------------------------------------------------------- tables
 * What decisions look up. A `cv_tables` is built or cloned by Python, changed, and then published; from then on it is
 * immutable. Objects have numbers that Python chose (never 0, one space for workloads, services and policies); a put
 * replaces whatever had the number, and either happens whole or fails and changes nothing (-ENOMEM, -EINVAL). A clone
 * shares what did not change, so a clone for every change is the way to publish. `destroy` drops the caller's
 * reference.
 */

struct cv_tables;

enum cv_waypoint_kind {
	CV_WAYPOINT_NONE = 0,
	CV_WAYPOINT_SERVICE = 1,  /* `number` is a service */
	CV_WAYPOINT_WORKLOAD = 2, /* `number` is a workload */
	CV_WAYPOINT_UNKNOWN = 3,  /* configured, and not resolvable: refuse */
};

struct cv_waypoint_ref {
	uint8_t kind;
	uint16_t port; /* HBONE port of the waypoint */
	uint32_t number;
	uint32_t weight; /* share of connections; only among the waypoints of a service */
};

/* An address range; a v4 range stands in its mapped form, so 10.0.0.0/8 has length 104. */
struct cv_prefix {
	uint8_t ip[16];
	uint8_t length; /* 128: one address */
};

struct cv_workload {
	uint32_t number;
	const char *uid;
	const char *identity; /* spiffe://td/ns/<ns>/sa/<sa> */
	const char *namespace_;
	const char *baggage; /* value of the `baggage` header that names it */
	const char *network;
	uint8_t hbone;   /* speaks HBONE on 15008 */
	uint8_t hidden;  /* not found by address: it shares the host's, or lives on another network */
	uint8_t foreign; /* runs on another node: its policies are not here, so whoever asks to reach it is refused */
	struct cv_waypoint_ref waypoint;
	const uint8_t (*addresses)[16];
	uint32_t address_count;
	const uint32_t *policies; /* every policy that judges connections to it; only needed for pods of this node */
	uint32_t policy_count;
};

struct cv_service_endpoint {
	uint32_t workload;
	/* 0: a member whatever its ports, which is how a service that is a waypoint is reached; weight 0: never chosen.
	 */
	uint16_t service_port;
	uint16_t target_port;
	uint32_t weight;
};

/* Which addresses of an endpoint may be dialled; values of the wire's IPFamilies. */
enum cv_families {
	CV_FAMILIES_ANY = 0,
	CV_FAMILIES_IPV4 = 1,
	CV_FAMILIES_IPV6 = 2,
	CV_FAMILIES_DUAL = 3,
};

struct cv_service {
	uint32_t number;
	const char *hostname;
	const char *namespace_;
	uint8_t passthrough;    /* always to the original destination */
	uint8_t namespace_only; /* seen only from its own namespace */
	uint8_t canonical;
	uint8_t families;                        /* enum cv_families */
	const struct cv_waypoint_ref *waypoints; /* none: no redirection */
	uint32_t waypoint_count;
	const struct cv_prefix *vips; /* on this node's network */
	uint32_t vip_count;
	/* Usable endpoints as seen from this node: health, locality and mode already applied by Python. */
	const struct cv_service_endpoint *endpoints;
	uint32_t endpoint_count;
	const uint16_t *ports; /* every service port, also those without a usable endpoint */
	uint32_t port_count;
	const char *const *subject_names; /* further SPIFFE ids that its endpoints may show */
	uint32_t subject_name_count;
};

/* A policy, flattened: engine/src/policy.h gives the byte format. A put checks it whole (-EINVAL). */
struct cv_policy {
	uint32_t number;
	const char *name; /* "namespace/name" */
	uint8_t deny;     /* 0 allow, 1 deny */
	uint8_t dry_run;  /* judged and reported, never enforced */
	const uint8_t *program;
	size_t program_length;
};

struct cv_tables *cv_tables_create(void);
struct cv_tables *cv_tables_clone(const struct cv_tables *from);
void cv_tables_destroy(struct cv_tables *tables);
int cv_tables_put_workload(struct cv_tables *tables, const struct cv_workload *workload);
int cv_tables_put_service(struct cv_tables *tables, const struct cv_service *service);
int cv_tables_put_policy(struct cv_tables *tables, const struct cv_policy *policy);
int cv_tables_remove(struct cv_tables *tables, uint32_t number); /* -ENOENT when unknown */

/* The workload that has an address on this node's network; 0: none. */
uint32_t cv_tables_by_address(const struct cv_tables *tables, const uint8_t ip[16]);

enum cv_route_kind {
	CV_ROUTE_PLAIN = 0,
	CV_ROUTE_HBONE = 1,
	CV_ROUTE_REFUSE = 2,
};

struct cv_route {
	uint8_t kind;
	uint8_t reason;               /* when REFUSE */
	uint32_t workload;            /* chosen endpoint, 0 unknown */
	uint32_t service;             /* 0: workload-addressed */
	uint32_t next_hop;            /* workload whose identity the peer must show: the endpoint or its waypoint */
	uint32_t next_hop_service;    /* service whose subject names the peer may show instead, 0: none */
	struct cv_endpoint dial;      /* where TCP goes */
	struct cv_endpoint authority; /* what CONNECT asks for */
};

/*
 * `randomness` picks among endpoints, so that a test can choose. `source` is a workload number. Always returns 0: what
 * cannot be routed is refused with a reason, and the service and workload that were found stand in the result.
 */
int cv_tables_route(const struct cv_tables *tables, uint32_t source, const struct cv_endpoint *destination,
		    uint64_t randomness, struct cv_route *ret);

struct cv_peer {
	const char *identity; /* NULL: not authenticated */
	uint8_t ip[16];
};

struct cv_verdict {
	uint8_t allow;
	uint32_t policy;         /* that decided, or the first ALLOW when none of them matched; 0: none applied */
	uint32_t dry_run_policy; /* a dry-run policy that would have refused; 0: none */
};

/*
 * May `peer` reach `destination` of the workload? -ENOENT and a refusal when the workload is unknown or foreign. An
 * identity that is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account> counts as none.
 */
int cv_tables_judge(const struct cv_tables *tables, uint32_t workload, const struct cv_peer *peer,
		    const struct cv_endpoint *destination, struct cv_verdict *ret);

/* ----------------------------------------------------------------- engine */

struct cv_engine;

struct cv_settings {
	uint32_t workers;
	int notes_map; /* fd of the sk_storage map `notes`; -1: no programs, accept takes the local address */
	int flows_map; /* fd of the sk_storage map `flows`; -1: none */
	uint32_t connect_timeout_ms;
	uint32_t handshake_timeout_ms;
	uint32_t request_timeout_ms; /* CONNECT sent to answer */
	uint32_t source_wait_ms;     /* how long a connection waits for its pod or identity to be known */
	uint32_t pool_idle_ms;       /* an unused tunnel is closed after this */
	uint32_t ping_interval_ms;
	uint32_t ping_timeout_ms;
	uint32_t max_connections_per_pod; /* application connections, each direction; accepted tunnels */
	uint32_t max_handshakes;          /* in flight, per worker */
	uint32_t max_streams_per_tunnel;  /* that we open on one tunnel */
	uint32_t stream_buffer_bytes;     /* bytes read ahead per direction and stream */
	uint32_t tunnel_buffer_bytes;     /* bytes received and not yet taken by applications, per tunnel */
	uint32_t worker_buffer_bytes;     /* held by one worker; beyond it every stream and tunnel gets the least */
	uint32_t certificate_skew_ms;     /* peers' certificates may begin so late; streams are taken so long after */
	uint32_t expired_drain_ms;        /* expiry, and from then on they have so long to end */
	uint32_t keepalive_s;             /* TCP keepalive: idle and interval */
	uint32_t spin_us;                 /* a worker may poll this long before it sleeps, where that pays; 0: never */
};

struct cv_engine *cv_engine_create(const struct cv_settings *settings); /* NULL with errno */
int cv_engine_start(struct cv_engine *engine);
int cv_engine_publish(struct cv_engine *engine, struct cv_tables *tables); /* takes the reference; re-judges */
/* Stop accepting, send GOAWAY, cut what is left after the deadline. Returns at once; DRAINED follows. */
int cv_engine_drain(struct cv_engine *engine, uint32_t deadline_ms);
void cv_engine_destroy(struct cv_engine *engine); /* joins the workers */

/* Identities: PEM strings; key and chain replace what was there, open tunnels keep what they have. */
int cv_engine_put_identity(struct cv_engine *engine, const char *identity, const char *chain_pem, const char *key_pem,
			   const char *roots_pem);
int cv_engine_remove_identity(struct cv_engine *engine, const char *identity);

/* A local pod. The descriptors become the engine's, also on failure. */
struct cv_pod_sockets {
	uint32_t number; /* chosen by Python, not 0 */
	const char *workload_uid;
	const char *identity;
	int netns;     /* for sockets that the engine makes in the pod */
	int outbound4; /* 15001 listeners; -1: none */
	int outbound6;
	int inbound; /* 15006 */
	int hbone;   /* 15008 */
};

int cv_engine_add_pod(struct cv_engine *engine, const struct cv_pod_sockets *pod);
/* drain: close all listeners, keep open connections until removed again without drain. */
int cv_engine_remove_pod(struct cv_engine *engine, uint32_t number, uint8_t drain);

/* ----------------------------------------------------------------- events */

enum cv_event_kind {
	CV_EVENT_OPENED = 1,      /* of cv_engine_connections: it is open */
	CV_EVENT_CLOSED = 2,      /* it ended; also for connections that never opened */
	CV_EVENT_IDENTITY = 3,    /* a connection waits for the identity in `identity` */
	CV_EVENT_DRAINED = 4,     /* the drain of the whole engine is over */
	CV_EVENT_POD_REMOVED = 5, /* nothing of the pod is left */
};

enum cv_path {
	CV_PATH_NONE = 0,
	CV_PATH_PLAIN = 1,
	CV_PATH_HBONE = 2,
};

struct cv_event {
	uint8_t kind;
	uint8_t direction; /* 1 outbound, 2 inbound: enum cv_direction of bpf/include/maps.h */
	uint8_t path;
	uint8_t reason;
	uint8_t opened;  /* CLOSED: 1 if a relay had joined both sides */
	uint16_t status; /* HTTP status sent or received, 0 none */
	uint32_t pod;
	uint32_t source; /* workload numbers, 0 unknown */
	uint32_t destination;
	uint32_t service;
	uint32_t policy; /* that denied, 0 none */
	uint32_t dry_run_policy;
	uint64_t connection; /* unique in this process */
	uint64_t time_us;    /* CLOCK_REALTIME */
	uint64_t duration_us;
	uint64_t bytes_sent; /* towards the accepting side */
	uint64_t bytes_received;
	struct cv_endpoint downstream; /* who connected */
	struct cv_endpoint original;   /* outbound: what the application dialled, possibly a service */
	struct cv_endpoint
		upstream;         /* the application at the far end: what CONNECT asks for, or where plain TCP goes */
	struct cv_endpoint hbone; /* the other end of the tunnel, zero when plain */
	char identity[512];       /* authenticated peer; IDENTITY: the one that is needed */
	char detail[256];         /* one short sentence for the log, or empty */
};

int cv_engine_event_fd(struct cv_engine *engine); /* readable while events wait */
/* Copies up to `max` events; returns how many. */
int cv_engine_events(struct cv_engine *engine, struct cv_event *ret, uint32_t max);

/* Open connections as events of kind OPENED with their figures so far. Returns how many there are, also above `max`. */
int cv_engine_connections(struct cv_engine *engine, struct cv_event *ret, uint32_t max);

/* A counted socket that is still open: what the kernel has seen and `flows` has not yet added to its edge. */
struct cv_flow_delta {
	uint32_t source;
	uint32_t destination;
	uint32_t direction; /* enum cv_direction of bpf/include/maps.h */
	uint64_t sent;      /* payload from source towards destination */
	uint64_t received;
};

int cv_engine_flows(struct cv_engine *engine, struct cv_flow_delta *ret, uint32_t max);

struct cv_stats {
	uint64_t accepted;
	uint64_t refused[64];       /* by enum cv_reason: connections that never opened */
	uint64_t tunnels_opened[2]; /* as client, as server */
	uint64_t tunnels_closed[2];
	uint64_t handshakes_failed[2];
	uint64_t handshakes_resumed[2];
	uint64_t pool_hits;
	uint64_t pool_misses;
	uint64_t events_dropped;
	uint64_t bytes_buffered;   /* now */
	uint64_t connections_open; /* now */
	uint64_t tunnels_open;     /* now */
	uint64_t spun_us;          /* processor time of workers that polled before they slept */
};

int cv_engine_stats(struct cv_engine *engine, struct cv_stats *ret);

#endif
