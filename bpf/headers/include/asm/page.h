/* SPDX-License-Identifier: GPL-2.0-only */
/* Only BCC's ring-buffer macros use it. */
#define PAGE_SIZE 4096
