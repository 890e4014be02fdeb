using System;
using System.Buffers.Binary;
using System.IO;
using System.IO.Compression;
using System.Text;

namespace Padim;

// PNG as ISO/IEC 15948 has it, of every kind: .NET has no reader of its own outside Windows.
internal static class Png
{
    private const int Grey = 0, Colours = 2, Palette = 3, GreyAlpha = 4, ColoursAlpha = 6;

    private static readonly byte[] Signature = { 0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A };
    private static readonly uint[] CrcTable = MadeCrcTable();

    // Where each pass begins, and its steps: x, y, across, down.
    private static readonly int[][] Whole = { new[] { 0, 0, 1, 1 } };
    private static readonly int[][] Interlaced =
    {
        new[] { 0, 0, 8, 8 }, new[] { 4, 0, 8, 8 }, new[] { 0, 4, 4, 8 }, new[] { 2, 0, 4, 4 },
        new[] { 0, 2, 2, 4 }, new[] { 1, 0, 2, 2 }, new[] { 0, 1, 1, 2 },
    };

    internal static bool Begins(ReadOnlySpan<byte> bytes) => bytes.StartsWith(Signature);

    // bitDepth: what of grey values of 16 bits the camera fills.
    internal static Photo Decode(byte[] bytes, int bitDepth)
    {
        Header? header = null;
        var palette = new byte[3 * 256];
        var compressed = new MemoryStream();
        int orientation = 1;
        int at = Signature.Length;
        for (string name = ""; name != "IEND";)
        {
            if (bytes.Length - at < 12) throw Photo.Damaged("the file ends too early");
            uint length = BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(at));
            if (length > bytes.Length - at - 12) throw Photo.Damaged("the file ends too early");
            name = Encoding.ASCII.GetString(bytes, at + 4, 4);
            ReadOnlySpan<byte> data = bytes.AsSpan(at + 8, (int)length);
            uint sum = BinaryPrimitives.ReadUInt32BigEndian(bytes.AsSpan(at + 8 + (int)length));
            if (sum != Crc(bytes.AsSpan(at + 4, 4 + (int)length))) throw Photo.Damaged($"a wrong sum in {name}");
            if ((header is null) != (name == "IHDR")) throw Photo.Damaged("IHDR is not first, or there are two");
            if (name == "IHDR") header = new Header(data);
            else if (name == "PLTE") data.Slice(0, Math.Min(data.Length, palette.Length)).CopyTo(palette);
            else if (name == "IDAT") compressed.Write(data);
            else if (name == "eXIf") orientation = Photo.OrientationOf(data);
            at += 12 + (int)length;
        }
        if (compressed.Length < 2) throw Photo.Damaged("no pixels");
        compressed.Position = 2; // after zlib's own header
        using var stream = new DeflateStream(compressed, CompressionMode.Decompress);
        return Pixels(stream, header!, palette, bitDepth).Upright(orientation);
    }

    internal static void Write(string file, Photo photo)
    {
        using var compressed = new MemoryStream();
        compressed.Write(new byte[] { 0x78, 0x01 });
        uint a = 1, b = 0; // of Adler's sum
        using (var stream = new DeflateStream(compressed, CompressionLevel.Fastest, leaveOpen: true))
        {
            var row = new byte[1 + 3 * photo.Width]; // the first byte says: not filtered
            for (int y = 0; y < photo.Height; ++y)
            {
                Buffer.BlockCopy(photo.Rgb, y * (row.Length - 1), row, 1, row.Length - 1);
                stream.Write(row, 0, row.Length);
                foreach (byte value in row)
                {
                    a = (a + value) % 65521;
                    b = (b + a) % 65521;
                }
            }
        }
        compressed.Write(BigEndian(b << 16 | a));
        var head = new byte[13];
        BinaryPrimitives.WriteInt32BigEndian(head, photo.Width);
        BinaryPrimitives.WriteInt32BigEndian(head.AsSpan(4), photo.Height);
        (head[8], head[9]) = (8, Colours);
        using var png = File.Create(file);
        png.Write(Signature);
        WriteChunk(png, "IHDR", head);
        WriteChunk(png, "IDAT", compressed.ToArray());
        WriteChunk(png, "IEND", Array.Empty<byte>());
    }

    private static Photo Pixels(Stream stream, Header header, byte[] palette, int bitDepth)
    {
        var photo = new Photo(header.Height, header.Width);
        foreach (int[] pass in header.IsInterlaced ? Interlaced : Whole)
        {
            var (left, top, across, down) = (pass[0], pass[1], pass[2], pass[3]);
            int columns = (header.Width - left + across - 1) / across;
            if (columns <= 0) continue;
            int length = (int)(((long)columns * header.Channels * header.Depth + 7) / 8);
            byte[] row = new byte[length], above = new byte[length];
            for (int y = top; y < header.Height; y += down)
            {
                int filter = stream.ReadByte();
                Fill(stream, row);
                Unfilter(filter, row, above, Math.Max(1, header.Channels * header.Depth / 8));
                for (int i = 0; i < columns; ++i)
                {
                    int to = 3 * (y * header.Width + left + i * across);
                    header.Colour(row, i, palette, bitDepth, photo.Rgb.AsSpan(to, 3));
                }
                (row, above) = (above, row);
            }
        }
        return photo;
    }

    private static void Fill(Stream stream, byte[] row)
    {
        for (int at = 0, read; at < row.Length; at += read)
        {
            read = stream.Read(row, at, row.Length - at);
            if (read == 0) throw Photo.Damaged("the pixels end too early");
        }
    }

    // step: bytes of a pixel, 1 at least.
    private static void Unfilter(int filter, byte[] row, byte[] above, int step)
    {
        if (filter < 0 || filter > 4) throw Photo.Damaged("the pixels are no PNG's");
        for (int i = 0; i < row.Length; ++i)
        {
            int left = i < step ? 0 : row[i - step], up = above[i], corner = i < step ? 0 : above[i - step];
            row[i] += (byte)(filter switch
            {
                1 => left,
                2 => up,
                3 => (left + up) / 2,
                4 => Paeth(left, up, corner),
                _ => 0,
            });
        }
    }

    private static int Paeth(int left, int up, int corner)
    {
        int toLeft = Math.Abs(up - corner), toUp = Math.Abs(left - corner);
        int toCorner = Math.Abs(left + up - 2 * corner);
        if (toLeft <= toUp && toLeft <= toCorner) return left;
        return toUp <= toCorner ? up : corner;
    }

    private static void WriteChunk(Stream stream, string name, byte[] data)
    {
        var body = new byte[4 + data.Length];
        Encoding.ASCII.GetBytes(name).CopyTo(body, 0);
        data.CopyTo(body, 4);
        stream.Write(BigEndian((uint)data.Length));
        stream.Write(body);
        stream.Write(BigEndian(Crc(body)));
    }

    private static byte[] BigEndian(uint value)
    {
        var bytes = new byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        return bytes;
    }

    private static uint Crc(ReadOnlySpan<byte> bytes)
    {
        uint value = uint.MaxValue;
        foreach (byte one in bytes) value = CrcTable[(value ^ one) & 255] ^ value >> 8;
        return ~value;
    }

    private static uint[] MadeCrcTable()
    {
        var table = new uint[256];
        for (uint i = 0; i < 256; ++i)
        {
            table[i] = i;
            for (int bit = 0; bit < 8; ++bit)
            {
                table[i] = (table[i] & 1) != 0 ? 0xEDB88320 ^ table[i] >> 1 : table[i] >> 1;
            }
        }
        return table;
    }

    private sealed class Header
    {
        private readonly int kind;

        internal Header(ReadOnlySpan<byte> data)
        {
            if (data.Length != 13) throw Photo.Damaged("IHDR has another length");
            uint width = BinaryPrimitives.ReadUInt32BigEndian(data);
            uint height = BinaryPrimitives.ReadUInt32BigEndian(data.Slice(4));
            (Depth, kind, IsInterlaced) = (data[8], data[9], data[12] == 1);
            Channels = kind switch
            {
                Grey or Palette => 1,
                GreyAlpha => 2,
                Colours => 3,
                ColoursAlpha => 4,
                _ => 0,
            };
            bool isDepth = kind switch
            {
                Grey => Depth == 1 || Depth == 2 || Depth == 4 || Depth == 8 || Depth == 16,
                Palette => Depth == 1 || Depth == 2 || Depth == 4 || Depth == 8,
                _ => Depth == 8 || Depth == 16,
            };
            if (Channels == 0 || !isDepth || width == 0 || height == 0 || width > int.MaxValue ||
                height > int.MaxValue || data[10] != 0 || data[11] != 0 || data[12] > 1)
            {
                throw Photo.Damaged("IHDR says what PNG does not know");
            }
            Photo.CheckSize(height, width);
            (Width, Height) = ((int)width, (int)height);
        }

        internal int Width { get; }

        internal int Height { get; }

        internal int Depth { get; }

        internal int Channels { get; }

        internal bool IsInterlaced { get; }

        // The colour of a pixel of a row, without alpha.
        internal void Colour(byte[] row, int index, byte[] palette, int bitDepth, Span<byte> rgb)
        {
            if (Depth == 8 && Channels >= 3)
            {
                row.AsSpan(index * Channels, 3).CopyTo(rgb);
            }
            else if (Channels >= 3) // of 16 bits the upper 8
            {
                for (int c = 0; c < 3; ++c) rgb[c] = row[2 * (index * Channels + c)];
            }
            else if (Depth < 8)
            {
                int bits = index * Depth;
                int value = row[bits / 8] >> (8 - Depth - bits % 8) & ((1 << Depth) - 1);
                if (kind == Palette) palette.AsSpan(3 * value, 3).CopyTo(rgb);
                else rgb.Fill((byte)(value * 255 / ((1 << Depth) - 1)));
            }
            else if (kind == Palette)
            {
                palette.AsSpan(3 * row[index], 3).CopyTo(rgb);
            }
            else if (Depth == 16 && kind == Grey)
            {
                rgb.Fill(Narrowed(row[2 * index] << 8 | row[2 * index + 1], bitDepth));
            }
            else
            {
                rgb.Fill(row[index * Channels * Depth / 8]);
            }
        }

        // White is what the camera's bits hold.
        private static byte Narrowed(int value, int bitDepth)
        {
            int white = (1 << bitDepth) - 1;
            if (value > white)
            {
                throw new InvalidDataException(
                    $"has values of {value}, and {bitDepth} bits hold up to {white}: fit with the " +
                    "--bit-depth that the camera has");
            }
            return (byte)((value * 255 + white / 2) / white);
        }
    }
}
