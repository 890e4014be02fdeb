// Photos from JPEG and PNG files, decoded as padim-edge decodes them. An application whose frames
// come from a camera does not need it.

using System;
using System.IO;

namespace Padim;

internal sealed class Photo
{
    // As padim-edge: more pixels than this are refused before they are decoded.
    private const long MostPixels = 178_956_970;

    internal Photo(int height, int width)
    {
        Height = height;
        Width = width;
        Rgb = new byte[3 * height * width];
    }

    internal int Height { get; }

    internal int Width { get; }

    // Row by row without gaps.
    internal byte[] Rgb { get; }

    // Upright, without alpha. `preprocess` says how much smaller a JPEG is decoded, and what is
    // white in 16 bits. Throws InvalidDataException: no such file, no JPEG or PNG, damaged or too large.
    internal static Photo Read(string file, Preprocess preprocess)
    {
        byte[] bytes = Contents(file);
        if (Jpeg.Begins(bytes)) return Jpeg.Decode(bytes, preprocess);
        if (Png.Begins(bytes)) return Png.Decode(bytes, preprocess.BitDepth);
        throw new InvalidDataException(bytes.Length == 0
            ? "the file is empty: replace or remove it"
            : "is no JPEG or PNG: convert or remove it");
    }

    internal static void CheckSize(long height, long width)
    {
        if (height * width > MostPixels)
        {
            throw new InvalidDataException(
                $"has too many pixels ({width} x {height}); at most {MostPixels} are allowed: scale it down");
        }
    }

    internal static InvalidDataException Damaged(string why) => new InvalidDataException(
        $"cannot be decoded ({why}): it is damaged or truncated, replace or remove it");

    // EXIF's orientation, 1 to 8, of a block in TIFF's format; 1 where it says none.
    internal static int OrientationOf(ReadOnlySpan<byte> tiff)
    {
        if (tiff.Length < 8) return 1;
        bool isBig = tiff.StartsWith(new byte[] { (byte)'M', (byte)'M', 0, 42 });
        if (!isBig && !tiff.StartsWith(new byte[] { (byte)'I', (byte)'I', 42, 0 })) return 1;
        long directory = Number(tiff, 4, 4, isBig);
        if (directory > tiff.Length - 2) return 1;
        long entries = Number(tiff, directory, 2, isBig);
        for (long entry = 0; entry < entries; ++entry)
        {
            long at = directory + 2 + 12 * entry;
            if (at + 12 > tiff.Length) return 1;
            if (Number(tiff, at, 2, isBig) == 0x0112 && Number(tiff, at + 2, 2, isBig) == 3)
            {
                long said = Number(tiff, at + 8, 2, isBig);
                return said >= 1 && said <= 8 ? (int)said : 1;
            }
        }
        return 1;
    }

    internal Photo Upright(int orientation)
    {
        if (orientation == 1) return this;
        bool swaps = orientation >= 5;
        bool mirrorsColumns = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
        bool mirrorsRows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
        var turned = swaps ? new Photo(Width, Height) : new Photo(Height, Width);
        int to = 0;
        for (int y = 0; y < turned.Height; ++y)
        {
            for (int x = 0; x < turned.Width; ++x, to += 3)
            {
                int column = swaps ? y : x, row = swaps ? x : y;
                if (mirrorsColumns) column = Width - 1 - column;
                if (mirrorsRows) row = Height - 1 - row;
                Buffer.BlockCopy(Rgb, 3 * (row * Width + column), turned.Rgb, to, 3);
            }
        }
        return turned;
    }

    private static long Number(ReadOnlySpan<byte> bytes, long at, int count, bool isBig)
    {
        long value = 0;
        for (int i = 0; i < count; ++i)
        {
            value |= (long)bytes[(int)at + (isBig ? count - 1 - i : i)] << (8 * i);
        }
        return value;
    }

    private static byte[] Contents(string file)
    {
        if (Directory.Exists(file))
        {
            throw new InvalidDataException("cannot be read (it is a folder): give image files");
        }
        try
        {
            return File.ReadAllBytes(file);
        }
        catch (Exception error) when (error is IOException || error is UnauthorizedAccessException ||
            error is ArgumentException)
        {
            string why = error is FileNotFoundException || error is DirectoryNotFoundException
                ? "No such file"
                : error.Message;
            throw new InvalidDataException(
                $"cannot be read ({why}): give an image file that exists and is readable");
        }
    }
}
