/* Threefry-2x32 with 13 rounds (Salmon, Moraes, Dror, Shaw, SC 2011): the hash of every sketch. */
static void rosler_threefry(const uint32_t key[2], uint32_t c0, uint32_t c1, uint32_t out[2])
{
    static const unsigned char rotation[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    const uint32_t k[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
    uint32_t x0 = c0 + k[0], x1 = c1 + k[1];
    uint32_t n;
    int i;
    for (i = 0; i < 13; ++i) {
        const int r = rotation[i % 8];
        x0 += x1;
        x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0;
        if (i % 4 == 3) {
            n = (uint32_t)(i / 4 + 1);
            x0 += k[n % 3];
            x1 += k[(n + 1) % 3] + n;
        }
    }
    out[0] = x0;
    out[1] = x1;
}
