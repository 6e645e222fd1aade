/* SPDX-License-Identifier: GPL-2.0-only */
/* Named by BCC's helpers for stack-trace tables, which no program here has. */
