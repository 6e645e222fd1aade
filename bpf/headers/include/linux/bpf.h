/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC carries its own copy of the BPF user interface. */
#include <bcc/bpf.h>
