/* The one function of bcryptprimitives.dll that Rust's standard library calls and Wine 8 lacks. */
typedef unsigned char u8;
typedef unsigned long ulong;
__declspec(dllimport) u8 __stdcall SystemFunction036(void *, ulong); /* RtlGenRandom */

__declspec(dllexport) int __stdcall ProcessPrng(u8 *out, unsigned long long len) {
    while (len) {
        ulong part = len > 0x10000 ? 0x10000 : (ulong)len;
        if (!SystemFunction036(out, part)) return 0;
        out += part;
        len -= part;
    }
    return 1;
}

int __stdcall DllMainCRTStartup(void *instance, ulong reason, void *reserved) { return 1; }
