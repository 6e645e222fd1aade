/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions of addresses. Pure; nothing here touches a socket. */
#include "endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

static const uint8_t mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
static const uint8_t loopback6[16] = {[15] = 1};

bool cv_endpoint_is_v4(const struct cv_endpoint *endpoint)
{
	return !memcmp(endpoint->ip, mapped_prefix, sizeof(mapped_prefix));
}

bool cv_endpoint_is_loopback(const struct cv_endpoint *endpoint)
{
	if (cv_endpoint_is_v4(endpoint))
		return endpoint->ip[12] == 127;
	return !memcmp(endpoint->ip, loopback6, sizeof(loopback6));
}

bool cv_endpoint_same_ip(const struct cv_endpoint *a, const struct cv_endpoint *b)
{
	return !memcmp(a->ip, b->ip, sizeof(a->ip));
}

bool cv_endpoint_same(const struct cv_endpoint *a, const struct cv_endpoint *b)
{
	return cv_endpoint_same_ip(a, b) && a->port == b->port;
}

bool cv_endpoint_is_mesh_port(uint16_t port)
{
	return port == 15001 || port == 15006 || port == 15008;
}

socklen_t cv_endpoint_to_sockaddr(const struct cv_endpoint *endpoint, struct sockaddr_storage *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (cv_endpoint_is_v4(endpoint)) {
		struct sockaddr_in *in = (struct sockaddr_in *)ret;

		in->sin_family = AF_INET;
		in->sin_port = htons(endpoint->port);
		memcpy(&in->sin_addr, endpoint->ip + 12, 4);
		return sizeof(*in);
	}
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;

	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(endpoint->port);
	memcpy(&in6->sin6_addr, endpoint->ip, 16);
	return sizeof(*in6);
}

int cv_endpoint_from_sockaddr(const struct sockaddr_storage *address, struct cv_endpoint *ret)
{
	if (address->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)address;

		memcpy(ret->ip, mapped_prefix, sizeof(mapped_prefix));
		memcpy(ret->ip + 12, &in->sin_addr, 4);
		ret->port = ntohs(in->sin_port);
		return 0;
	}
	if (address->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;

		memcpy(ret->ip, &in6->sin6_addr, 16);
		ret->port = ntohs(in6->sin6_port);
		return 0;
	}
	return -EAFNOSUPPORT;
}

void cv_endpoint_print(const struct cv_endpoint *endpoint, char ret[CV_ENDPOINT_TEXT])
{
	char ip[INET6_ADDRSTRLEN] = "";

	if (cv_endpoint_is_v4(endpoint)) {
		inet_ntop(AF_INET, endpoint->ip + 12, ip, sizeof(ip));
		snprintf(ret, CV_ENDPOINT_TEXT, "%s:%u", ip, endpoint->port);
	} else {
		inet_ntop(AF_INET6, endpoint->ip, ip, sizeof(ip));
		snprintf(ret, CV_ENDPOINT_TEXT, "[%s]:%u", ip, endpoint->port);
	}
}
