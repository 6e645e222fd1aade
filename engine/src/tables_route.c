/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where an outbound connection goes. First hit wins:
 *
 *   the destination is a loopback mesh port           refuse: self call
 *   VIP of a service with a waypoint                  HBONE to the waypoint, which is asked for the VIP and port
 *   VIP of a service that passes through              plain, to the original destination
 *   VIP of another service                            an endpoint by weight, else refuse
 *   address of a workload with a waypoint             HBONE to the waypoint, which is asked for the address and port
 *   address of a workload                             that workload
 *   anything else                                     plain, to the original destination
 *
 * An endpoint or workload that speaks HBONE is reached over it, others in plain. A waypoint is never sent back to
 * itself. What another network would have to carry is refused, and a waypoint that cannot be resolved refuses instead
 * of being passed by. ztunnel/decide.py is the reference for this file.
 */
#include <stdbool.h>
#include <string.h>
#include "endpoint.h"
#include "tables.h"

enum { PORT_HBONE = 15008 };

struct call {
	const struct cv_tables *tables;
	const struct cv_workload *source;
	const struct cv_endpoint *destination;
	uint64_t randomness;
};

static const uint8_t MAPPED[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static bool is_ipv4(const uint8_t ip[16])
{
	return !memcmp(ip, MAPPED, sizeof(MAPPED));
}

static bool is_self_call(const struct cv_endpoint *destination)
{
	return cv_endpoint_is_loopback(destination) && cv_endpoint_is_mesh_port(destination->port);
}

static void refuse(struct cv_route *ret, enum cv_reason reason)
{
	ret->kind = CV_ROUTE_REFUSE;
	ret->reason = (uint8_t)reason;
}

static void pass_through(const struct call *call, struct cv_route *ret)
{
	ret->kind = CV_ROUTE_PLAIN;
	ret->dial = *call->destination;
}

/* ------------------------------------------------------------ VIP look-up */

static bool is_in_namespace(const struct call *call, const struct cv_service *service)
{
	return !strcmp(call->source->namespace_, service->namespace_);
}

static int compare_names(const struct cv_service *left, const struct cv_service *right)
{
	int order = strcmp(left->namespace_, right->namespace_);

	return order ? order : strcmp(left->hostname, right->hostname);
}

/* The caller's namespace wins, then the longer range, then the canonical service, then the first by name. */
static bool beats(const struct call *call, const struct cv_service *left, uint8_t left_length,
		  const struct cv_service *right, uint8_t right_length)
{
	bool left_is_near = is_in_namespace(call, left), right_is_near = is_in_namespace(call, right);

	if (left_is_near != right_is_near)
		return left_is_near;
	if (left_length != right_length)
		return left_length > right_length;
	if (!left->canonical != !right->canonical)
		return left->canonical;
	return compare_names(left, right) < 0;
}

static bool has_vip(const struct cv_service *service, const uint8_t ip[16], uint8_t length)
{
	uint32_t i;

	for (i = 0; i < service->vip_count; i++)
		if (cv_tables_prefix_equals(&service->vips[i], ip, length))
			return true;
	return false;
}

static const struct cv_service_object *find_at_length(const struct call *call, uint8_t length)
{
	const uint8_t *ip = call->destination->ip;
	uint32_t hash = cv_tables_hash_prefix(ip, length), position = 0;
	const struct cv_service_object *best = NULL, *candidate;

	while ((candidate = (const void *)cv_index_next(&call->tables->by_vip, hash, &position))) {
		const struct cv_service *service = &candidate->view;

		if ((service->namespace_only && !is_in_namespace(call, service)) || !has_vip(service, ip, length))
			continue;
		if (!best || beats(call, service, length, &best->view, length))
			best = candidate;
	}
	return best;
}

/* A range of IPv6 does not hold IPv4 addresses, so those are looked up in ranges of 96 bits and more. */
static const struct cv_service_object *find_service(const struct call *call)
{
	const struct cv_service_object *best = find_at_length(call, CV_PREFIX_BITS), *candidate;
	uint8_t shortest = is_ipv4(call->destination->ip) ? 96 : 0;
	uint8_t best_length = 0, length = CV_PREFIX_BITS;

	if (best)
		return best;
	while (length-- > shortest) {
		if (!call->tables->vips_of_length[length])
			continue;
		candidate = find_at_length(call, length);
		if (candidate && (!best || beats(call, &candidate->view, length, &best->view, best_length))) {
			best = candidate;
			best_length = length;
		}
	}
	return best;
}

/* ---------------------------------------------------------------- address */

static bool accepts(uint8_t families, const uint8_t ip[16])
{
	if (families == CV_FAMILIES_IPV4)
		return is_ipv4(ip);
	if (families == CV_FAMILIES_IPV6)
		return !is_ipv4(ip);
	return true;
}

/* The address that was dialled if it is one of the workload's, else one of its family, else any that is allowed. */
static const uint8_t *choose_address(const struct call *call, const struct cv_workload *workload, uint8_t families)
{
	const uint8_t *dialled = call->destination->ip, *same_family = NULL, *any = NULL, *ip;
	uint32_t i;

	for (i = 0; i < workload->address_count; i++) {
		ip = workload->addresses[i];
		if (!memcmp(ip, dialled, 16))
			return ip;
		if (!accepts(families, ip))
			continue;
		if (!any)
			any = ip;
		if (!same_family && is_ipv4(ip) == is_ipv4(dialled))
			same_family = ip;
	}
	return same_family ? same_family : any;
}

static void set_endpoint(struct cv_endpoint *endpoint, const uint8_t ip[16], uint16_t port)
{
	memcpy(endpoint->ip, ip, 16);
	endpoint->port = port;
}

static bool is_on_network_of(const struct cv_workload *workload, const struct cv_workload *other)
{
	return !strcmp(workload->network, other->network);
}

/* --------------------------------------------------------------- waypoint */

static bool is_waypoint(const struct call *call, const struct cv_waypoint_ref *waypoint)
{
	const struct cv_service_object *service;
	const struct cv_port_group *members;
	uint32_t i;

	if (waypoint->kind == CV_WAYPOINT_WORKLOAD)
		return waypoint->number == call->source->number;
	service =
		waypoint->kind == CV_WAYPOINT_SERVICE ? cv_tables_service_object(call->tables, waypoint->number) : NULL;
	members = service ? cv_objects_group(service, 0) : NULL;
	for (i = 0; members && i < members->count; i++)
		if (service->view.endpoints[members->first + i].workload == call->source->number)
			return true;
	return false;
}

static bool is_any_waypoint(const struct call *call, const struct cv_waypoint_ref *waypoints, uint32_t count)
{
	while (count--)
		if (is_waypoint(call, &waypoints[count]))
			return true;
	return false;
}

static const struct cv_workload *pick_member(const struct call *call, const struct cv_service_object *service)
{
	const struct cv_port_group *members = cv_objects_group(service, 0);
	const struct cv_service_endpoint *endpoint =
		members ? cv_objects_pick(service, members, call->randomness) : NULL;

	return endpoint ? cv_tables_workload(call->tables, endpoint->workload) : NULL;
}

static void to_waypoint(const struct call *call, const struct cv_waypoint_ref *waypoint, struct cv_route *ret)
{
	const struct cv_service_object *service = NULL;
	const struct cv_workload *workload = NULL;
	const uint8_t *ip;

	if (waypoint->kind == CV_WAYPOINT_SERVICE) {
		service = cv_tables_service_object(call->tables, waypoint->number);
		workload = service ? pick_member(call, service) : NULL;
	} else if (waypoint->kind == CV_WAYPOINT_WORKLOAD) {
		workload = cv_tables_workload(call->tables, waypoint->number);
	}
	if (!workload)
		return refuse(ret, CV_REASON_UNKNOWN_WAYPOINT);
	ret->next_hop = workload->number;
	ret->next_hop_service = service ? service->view.number : 0;
	if (!is_on_network_of(workload, call->source))
		return refuse(ret, CV_REASON_UNSUPPORTED_NETWORK);
	ip = choose_address(call, workload, service ? service->view.families : CV_FAMILIES_ANY);
	if (!ip)
		return refuse(ret, CV_REASON_UNKNOWN_WAYPOINT);
	ret->kind = CV_ROUTE_HBONE;
	set_endpoint(&ret->dial, ip, waypoint->port ? waypoint->port : PORT_HBONE);
	ret->authority = *call->destination;
}

/* The halves of the randomness are swapped, so that which waypoint and which of its endpoints are two draws. */
static const struct cv_waypoint_ref *pick_waypoint(const struct call *call, const struct cv_service *service)
{
	static const struct cv_waypoint_ref unknown = {.kind = CV_WAYPOINT_UNKNOWN};
	uint64_t randomness = call->randomness << 32 | call->randomness >> 32, total = 0, ticket;
	uint32_t i;

	for (i = 0; i < service->waypoint_count; i++)
		total += service->waypoints[i].weight;
	ticket = (uint64_t)(((unsigned __int128)randomness * total) >> 64);
	for (i = 0; i < service->waypoint_count; i++) {
		if (ticket < service->waypoints[i].weight)
			return &service->waypoints[i];
		ticket -= service->waypoints[i].weight;
	}
	return &unknown;
}

/* ------------------------------------------------------------------ route */

static void to_workload(const struct call *call, const struct cv_workload *workload, uint8_t families, uint16_t port,
			struct cv_route *ret)
{
	const uint8_t *ip = choose_address(call, workload, families);

	ret->workload = workload->number;
	if (!is_on_network_of(workload, call->source))
		return refuse(ret, CV_REASON_UNSUPPORTED_NETWORK);
	if (!ip)
		return refuse(ret, CV_REASON_NO_HEALTHY_UPSTREAM);
	set_endpoint(&ret->dial, ip, port);
	if (!workload->hbone) {
		ret->kind = CV_ROUTE_PLAIN;
		return;
	}
	ret->kind = CV_ROUTE_HBONE;
	ret->next_hop = workload->number;
	ret->next_hop_service = ret->service;
	ret->authority = ret->dial;
	ret->dial.port = PORT_HBONE;
}

static void to_endpoint(const struct call *call, const struct cv_service_object *service, struct cv_route *ret)
{
	const struct cv_port_group *group =
		call->destination->port ? cv_objects_group(service, call->destination->port) : NULL;
	const struct cv_service_endpoint *endpoint;
	const struct cv_workload *workload;

	if (!group)
		return refuse(ret, CV_REASON_UNKNOWN_PORT);
	endpoint = cv_objects_pick(service, group, call->randomness);
	workload = endpoint ? cv_tables_workload(call->tables, endpoint->workload) : NULL;
	if (!workload)
		return refuse(ret, CV_REASON_NO_HEALTHY_UPSTREAM);
	to_workload(call, workload, service->view.families, endpoint->target_port, ret);
}

static void route_to_service(const struct call *call, const struct cv_service_object *object, bool is_also_workload,
			     struct cv_route *ret)
{
	const struct cv_service *service = &object->view;

	ret->service = service->number;
	/* An address that is a workload's too is that workload's first, as far as waypoints go. */
	if (service->waypoint_count && !is_also_workload &&
	    !is_any_waypoint(call, service->waypoints, service->waypoint_count))
		to_waypoint(call, pick_waypoint(call, service), ret);
	else if (service->passthrough)
		pass_through(call, ret);
	else
		to_endpoint(call, object, ret);
}

static void route_to_workload(const struct call *call, const struct cv_workload *workload, struct cv_route *ret)
{
	if (workload->waypoint.kind == CV_WAYPOINT_NONE || is_waypoint(call, &workload->waypoint)) {
		to_workload(call, workload, CV_FAMILIES_ANY, call->destination->port, ret);
		return;
	}
	ret->workload = workload->number;
	to_waypoint(call, &workload->waypoint, ret);
}

int cv_tables_route(const struct cv_tables *tables, uint32_t source, const struct cv_endpoint *destination,
		    uint64_t randomness, struct cv_route *ret)
{
	struct call call = {tables, cv_tables_workload(tables, source), destination, randomness};
	const struct cv_workload *workload = cv_tables_workload_by_ip(tables, destination->ip);
	const struct cv_service_object *service;

	memset(ret, 0, sizeof(*ret));
	if (is_self_call(destination)) {
		refuse(ret, CV_REASON_SELF_CALL);
		return 0;
	}
	if (!call.source) {
		refuse(ret, CV_REASON_UNKNOWN_SOURCE);
		return 0;
	}
	service = find_service(&call);
	if (service)
		route_to_service(&call, service, workload, ret);
	else if (workload)
		route_to_workload(&call, workload, ret);
	else
		pass_through(&call, ret);
	return 0;
}
