/* requires: apply_@FINISH@
   y = finish(W x) with weights that are mostly zero: of each output a count, and so many entries. The
   low bits of an entry, two's complement, are a weight, the others how many inputs lie between this
   one and the one before; a weight of zero only goes on. */
static void rosler_sparse_@S@(const @X@ *x, int n, const @ENTRY@ *entry, const @COUNT@ *count, int bits,
                              @MORE@const rosler_finish_@FINISH@ *f, @Y@ *y)
{
    const int up = 32 - bits;
    int j, k;
    for (j = 0; j < n; ++j) {
        @ACC@ acc = 0;
        const @X@ *at = x;
        for (k = count[j]; k > 0; --k) {
            const uint32_t e = *entry++;
            at += e >> bits;
            acc += @WEIGHT@ * *at;
            ++at;
        }
        y[j] = (@Y@)rosler_apply_@FINISH@(f, acc, j);
    }
}
