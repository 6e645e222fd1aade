/* SPDX-License-Identifier: Apache-2.0 */
/* What holds a pod's namespaces: sleeps, and ends when it is told to. */
#include <signal.h>
#include <unistd.h>

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(void)
{
	signal(SIGTERM, end);
	signal(SIGINT, end);
	for (;;)
		pause();
}
