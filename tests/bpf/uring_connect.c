/*
 * Connects through io_uring and prints what getpeername says, or the error.
 * usage: uring_connect ADDRESS PORT [sqpoll]
 */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *step)
{
	perror(step);
	return 2;
}

int main(int argc, char **argv)
{
	struct io_uring_params params = {.flags = argc > 3 ? IORING_SETUP_SQPOLL : 0, .sq_thread_idle = 1000};
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqe;
	char *sq, *cq;
	int ring, sock;

	if (argc < 3)
		return 2;
	address.sin_port = htons(atoi(argv[2]));
	inet_pton(AF_INET, argv[1], &address.sin_addr);
	ring = syscall(SYS_io_uring_setup, 4, &params);
	if (ring < 0)
		return fail("io_uring_setup");
	sq = mmap(NULL, params.sq_off.array + params.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_SQ_RING);
	cq = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(*cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqes = mmap(NULL, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	sock = socket(AF_INET, SOCK_STREAM, 0);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED || sock < 0)
		return fail("mmap or socket");

	memset(sqes, 0, sizeof(*sqes));
	sqes->opcode = IORING_OP_CONNECT;
	sqes->fd = sock;
	sqes->addr = (unsigned long)&address;
	sqes->off = sizeof(address);
	((unsigned *)(sq + params.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS | (argc > 3 ? IORING_ENTER_SQ_WAKEUP : 0),
		    NULL, 0) < 0)
		return fail("io_uring_enter");

	cqe = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
	if (cqe->res < 0) {
		printf("%s\n", strerror(-cqe->res));
		return 1;
	}
	if (getpeername(sock, (struct sockaddr *)&address, &length) < 0)
		return fail("getpeername");
	printf("%s:%d\n", inet_ntoa(address.sin_addr), ntohs(address.sin_port));
	return 0;
}
