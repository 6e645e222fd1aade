// SPDX-License-Identifier: Apache-2.0
/*
 * The CNI plugin, last in the chain of the node's network. It decides nothing: the node agent is asked, and answers an
 * ADD once the pod is captured or need not be. A pod whose agent is away does not start (error 11: the runtime tries
 * again), because it would speak in clear; the namespaces that the entry excludes start all the same, so that a node
 * gets up without us. DEL never fails: a pod must go away also when we are.
 *
 * One SOCK_SEQPACKET connection per call: a packet with the variables and the descriptor of the pod's network
 * namespace, a packet with the configuration as it came; back comes '0' or '1', the exit status, and what to print.
 */
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	MAX_INPUT = 128 << 10, /* also the longest packet: fits the default send buffer */
	MAX_ANSWER = 160 << 10,
	ADD_DEADLINE_S = 60, /* the agent answers in 45; kubelet gives a sandbox two minutes */
	DEL_DEADLINE_S = 5,
	/* error codes of the CNI specification */
	INCOMPATIBLE = 1,
	INVALID_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	DECODING_FAILURE = 6,
	INVALID_CONFIG = 7,
	TRY_AGAIN_LATER = 11,
};

static const char VERSIONS[] = "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]";
static const char *const KNOWN[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};

struct call {
	const char *command;
	char version[16];
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct slice config;
};

__attribute__((format(printf, 3, 4))) static int fail(const struct call *call, int code, const char *format, ...)
{
	char message[1024], quoted[8192];
	va_list list;
	size_t length;

	va_start(list, format);
	(void)vsnprintf(message, sizeof(message), format, list);
	va_end(list);
	length = json_quote(message, quoted, sizeof(quoted)); /* six bytes at most for each of a message */
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":%.*s}\n", call->version[0] ? call->version : "1.0.0", code,
	       (int)length, quoted);
	return 1;
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

static int read_input(char *into, size_t *length)
{
	for (*length = 0;;) {
		ssize_t count = read(STDIN_FILENO, into + *length, MAX_INPUT - *length);

		if (count < 0 && errno != EINTR)
			return -errno;
		if (!count)
			return 0;
		*length += count > 0 ? (size_t)count : 0;
		if (*length == MAX_INPUT)
			return -E2BIG;
	}
}

/* One of CNI_ARGS, `A=x;B=y`. */
static bool argument(const char *name, char *ret, size_t room)
{
	size_t width = strlen(name);

	for (const char *at = variable("CNI_ARGS"); *at;) {
		size_t length = strcspn(at, ";");

		if (length > width && !memcmp(at, name, width) && at[width] == '=') {
			length -= width + 1;
			if (length >= room)
				return false;
			memcpy(ret, at + width + 1, length);
			ret[length] = '\0';
			return true;
		}
		at += length + (at[length] == ';');
	}
	return false;
}

static bool is_excluded(const struct call *call)
{
	struct slice list, item;
	const char *cursor = NULL;
	char namespace[256], name[256];

	if (!argument("K8S_POD_NAMESPACE", namespace, sizeof(namespace)) ||
	    !json_member(call->config, "exclude", &list))
		return false;
	while (json_element(list, &cursor, &item))
		if (json_text(item, name, sizeof(name)) && !strcmp(name, namespace))
			return true;
	return false;
}

static int pass(const struct call *call)
{
	struct slice result;

	if (strcmp(call->command, "ADD"))
		return 0;
	if (!json_member(call->config, "prevResult", &result))
		return fail(call, INVALID_CONFIG,
			    "culvert-cni must stand behind the plugin that gives pods their network");
	return fwrite(result.at, 1, result.length, stdout) == result.length && putchar('\n') != EOF ? 0 : 1;
}

static int talk(const struct call *call, int *ret)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval deadline = {.tv_sec = strcmp(call->command, "ADD") ? DEL_DEADLINE_S : ADD_DEADLINE_S};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	*ret = fd;
	memcpy(address.sun_path, call->socket, sizeof(address.sun_path));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline)) ||
	    connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return -errno;
	return 0;
}

static bool append(char *into, size_t room, size_t *length, const char *key, const char *value)
{
	int count = snprintf(into + *length, room - *length, "%s\"%s\":", *length ? "," : "{", key);

	if (count < 0 || (size_t)count >= room - *length)
		return false;
	*length += (size_t)count;
	*length += json_quote(value, into + *length, room - *length);
	return *length < room;
}

static bool make_header(const struct call *call, char *into, size_t room, size_t *length)
{
	*length = 0;
	if (!append(into, room, length, "version", "1") || !append(into, room, length, "command", call->command) ||
	    !append(into, room, length, "container", variable("CNI_CONTAINERID")) ||
	    !append(into, room, length, "interface", variable("CNI_IFNAME")) ||
	    !append(into, room, length, "arguments", variable("CNI_ARGS")))
		return false;
	into[(*length)++] = '}';
	return *length <= room;
}

/* One packet, with a descriptor unless that is -1. */
static int send_packet(int fd, const void *bytes, size_t length, int descriptor)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (descriptor >= 0) {
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(descriptor));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int open_namespace(const struct call *call)
{
	const char *path = variable("CNI_NETNS");

	if (!*path)
		return strcmp(call->command, "ADD") ? -1 : -EINVAL;
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Ask the agent; its exit status, or -errno when there was no answer. */
static int ask(const struct call *call)
{
	static char answer[MAX_ANSWER];
	char header[8192];
	size_t length;
	ssize_t count;
	int fd = -1, netns, error;

	if (!make_header(call, header, sizeof(header), &length))
		return -E2BIG;
	netns = open_namespace(call);
	if (netns < 0 && !strcmp(call->command, "ADD"))
		return fail(call, INVALID_ENVIRONMENT, "the pod's network namespace %s: %s", variable("CNI_NETNS"),
			    strerror(errno));
	error = talk(call, &fd);
	if (!error)
		error = send_packet(fd, header, length, netns);
	if (!error)
		error = send_packet(fd, call->config.at, call->config.length, -1);
	if (!error) {
		count = recv(fd, answer, sizeof(answer), 0);
		if (count < 1)
			error = count < 0 ? -errno : -ECONNRESET;
		else if (answer[0] != '0' && answer[0] != '1')
			error = -EPROTO;
		else if (fwrite(answer + 1, 1, (size_t)count - 1, stdout) == (size_t)count - 1)
			error = answer[0] - '0';
		else
			error = 1;
	}
	if (fd >= 0)
		(void)close(fd);
	if (netns >= 0)
		(void)close(netns);
	return error;
}

static int add(const struct call *call)
{
	int status;

	if (is_excluded(call))
		return pass(call);
	status = ask(call);
	if (status >= 0)
		return status;
	return fail(call, TRY_AGAIN_LATER,
		    "Culvert's node agent does not answer at %s (%s), and a pod may not start outside of its reach: "
		    "look at the pod culvert-node of this node (kubectl -n culvert-system get pods -o wide)",
		    call->socket, strerror(-status));
}

static int check(const struct call *call)
{
	int status = is_excluded(call) ? 0 : ask(call);

	return status > 0 ? status : 0; /* an agent that is away has nothing to complain about */
}

static int print_versions(const struct call *call)
{
	printf("{\"cniVersion\":\"%s\",\"supportedVersions\":%s}\n", call->version[0] ? call->version : "1.0.0",
	       VERSIONS);
	return 0;
}

static bool is_known(const char *version)
{
	for (size_t i = 0; i < sizeof(KNOWN) / sizeof(KNOWN[0]); i++)
		if (!strcmp(version, KNOWN[i]))
			return true;
	return false;
}

/* What every command needs of the configuration; 0, or the exit status after a complaint. */
static int read_config(struct call *call)
{
	struct slice value;

	if (!json_is_valid(call->config))
		return fail(call, DECODING_FAILURE, "the network configuration is not JSON");
	if (!json_member(call->config, "cniVersion", &value) ||
	    !json_text(value, call->version, sizeof(call->version)) || !is_known(call->version)) {
		call->version[0] = '\0';
		return fail(call, INCOMPATIBLE, "cniVersion is none of %s", VERSIONS);
	}
	if (!json_member(call->config, "socket", &value) || !json_text(value, call->socket, sizeof(call->socket)))
		return fail(call, INVALID_CONFIG, "the entry of culvert-cni names no \"socket\" that fits an address");
	return 0;
}

static int run(struct call *call)
{
	int status = read_config(call);

	if (!strcmp(call->command, "DEL")) { /* nothing that is wrong here may hold a pod back from its end */
		if (!status && !is_excluded(call))
			(void)ask(call);
		return 0;
	}
	if (status)
		return status;
	if (!strcmp(call->command, "ADD"))
		return add(call);
	if (!strcmp(call->command, "CHECK"))
		return check(call);
	/* STATUS says that pods can start, also without the agent: those of excluded namespaces can, and a node that is
	 * not ready would get no pods at all. GC has nothing to collect: the agent knows which pods are there. */
	if (!strcmp(call->command, "STATUS") || !strcmp(call->command, "GC"))
		return 0;
	return fail(call, INVALID_ENVIRONMENT, "CNI_COMMAND %s is not known", call->command);
}

int main(void)
{
	static char input[MAX_INPUT];
	struct call call = {.command = variable("CNI_COMMAND")};
	int error = read_input(input, &call.config.length);
	struct slice version;

	call.config.at = input;
	if (!strcmp(call.command, "VERSION")) {
		if (!error && json_is_valid(call.config) && json_member(call.config, "cniVersion", &version) &&
		    (!json_text(version, call.version, sizeof(call.version)) || !is_known(call.version)))
			call.version[0] = '\0';
		return print_versions(&call);
	}
	if (error && strcmp(call.command, "DEL"))
		return fail(&call, IO_FAILURE, "the network configuration cannot be read: %s", strerror(-error));
	return run(&call);
}
