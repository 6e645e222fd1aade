/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC forces this file in before anything else; its helpers are only declared when the option is set. */
#ifndef CONFIG_BPF_SYSCALL
#define CONFIG_BPF_SYSCALL 1
#endif
