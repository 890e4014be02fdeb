using System;
using System.IO;
using System.Runtime.InteropServices;

namespace Padim;

// JPEG by libjpeg-turbo, the library of Pillow's own reader: its pixels are those that padim-edge
// sees, and it decodes 2, 4 or 8 times smaller, which costs a fraction of the time.
internal static class Jpeg
{
    private const string Library = "turbojpeg";
    private const int Rgb = 0, Cmyk = 3, Ycck = 4; // TJPF_RGB, TJCS_CMYK, TJCS_YCCK

    // TJFLAG_ACCURATEDCT, TJFLAG_STOPONWARNING, TJFLAG_LIMITSCANS: exact cosines, as Pillow's.
    private const int Flags = 4096 | 8192 | 32768;

    static Jpeg()
    {
        // The name without a version is that of Debian's -dev package alone.
        NativeLibrary.SetDllImportResolver(typeof(Jpeg).Assembly, (name, _, _) =>
            name == Library && NativeLibrary.TryLoad("libturbojpeg.so.0", out IntPtr library)
                ? library
                : IntPtr.Zero);
    }

    internal static bool Begins(ReadOnlySpan<byte> bytes) =>
        bytes.StartsWith(new byte[] { 0xFF, 0xD8, 0xFF });

    internal static Photo Decode(byte[] bytes, Preprocess preprocess)
    {
        IntPtr decoder = Opened();
        try
        {
            var size = (UIntPtr)(uint)bytes.Length;
            if (tjDecompressHeader3(decoder, bytes, size, out int width, out int height, out _, out int colours) != 0)
            {
                throw Damaged(decoder);
            }
            if (colours == Cmyk || colours == Ycck)
            {
                throw new InvalidDataException(
                    "has CMYK pixels; greyscale and RGB are allowed: convert it");
            }
            Photo.CheckSize(height, width);
            int orientation = OrientationOf(bytes);
            // As large as it is once it is upright.
            int factor = orientation >= 5 ? preprocess.Shrink(width, height) : preprocess.Shrink(height, width);
            var photo = new Photo(height / factor, width / factor);
            if (tjDecompress2(decoder, bytes, size, photo.Rgb, photo.Width, 0, photo.Height, Rgb, Flags) != 0)
            {
                throw Damaged(decoder);
            }
            return photo.Upright(orientation);
        }
        finally
        {
            tjDestroy(decoder);
        }
    }

    private static IntPtr Opened()
    {
        try
        {
            IntPtr decoder = tjInitDecompress();
            return decoder != IntPtr.Zero ? decoder : throw new OutOfMemoryException("libturbojpeg has no memory");
        }
        catch (DllNotFoundException)
        {
            throw new InvalidDataException(
                "cannot be decoded (libturbojpeg is not here): apt-get install libturbojpeg0");
        }
    }

    private static int OrientationOf(ReadOnlySpan<byte> bytes)
    {
        for (int at = 2; at + 4 <= bytes.Length && bytes[at] == 0xFF;)
        {
            byte marker = bytes[at + 1];
            if (marker == 0xFF) // padding
            {
                ++at;
                continue;
            }
            int length = bytes[at + 2] << 8 | bytes[at + 3]; // with its own two bytes
            if (marker == 0xDA || length < 2 || at + 2 + length > bytes.Length) break;
            ReadOnlySpan<byte> body = bytes.Slice(at + 4, length - 2);
            if (marker == 0xE1 && body.StartsWith(new byte[] { (byte)'E', (byte)'x', (byte)'i', (byte)'f', 0, 0 }))
            {
                return Photo.OrientationOf(body.Slice(6));
            }
            at += 2 + length;
        }
        return 1;
    }

    private static InvalidDataException Damaged(IntPtr decoder) =>
        Photo.Damaged(Marshal.PtrToStringAnsi(tjGetErrorStr2(decoder)) ?? "libturbojpeg says no more");

    [DllImport(Library)]
    private static extern IntPtr tjInitDecompress();

    [DllImport(Library)]
    private static extern int tjDecompressHeader3(
        IntPtr decoder, byte[] bytes, UIntPtr size, out int width, out int height, out int chroma, out int colours);

    [DllImport(Library)]
    private static extern int tjDecompress2(
        IntPtr decoder, byte[] bytes, UIntPtr size, byte[] pixels, int width, int pitch, int height, int format, int flags);

    [DllImport(Library)]
    private static extern IntPtr tjGetErrorStr2(IntPtr decoder);

    [DllImport(Library)]
    private static extern int tjDestroy(IntPtr decoder);
}
