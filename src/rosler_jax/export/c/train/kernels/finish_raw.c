/* Sums as they are. */
typedef int rosler_finish_raw;
