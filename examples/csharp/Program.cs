// Judge photos: one JSON line each, and how long it took on stderr.
//
//     padim-judge [--maps FOLDER] [--threads N] padim.onnx PHOTO...
//
// padim.onnx is fitted with --frame-input. Exit code 3 if a photo is anomalous, else 1 if one could
// not be judged, as `padim-edge run --fail-on-anomaly`; 1 for a model that cannot be opened, 2 for
// wrong arguments.

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;
using System.Linq;
using System.Text.Encodings.Web;
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Padim;

const string Usage =
    "usage: padim-judge [--maps FOLDER] [--threads N] padim.onnx PHOTO...\n" +
    "\n" +
    "  --maps FOLDER   write each photo with its heat map there, as PNG\n" +
    "  --threads N     of the runtime; all cores unless said\n";

if (args.Contains("--help"))
{
    Console.Out.Write(Usage);
    return 0;
}
try
{
    return Judge(new Arguments(args));
}
catch (UsageException error)
{
    Console.Error.Write($"error: {error.Message}\n{Usage}");
    return 2;
}

static int Judge(Arguments arguments)
{
    Detector detector;
    try
    {
        if (!File.Exists(arguments.Model)) throw new InvalidDataException("there is no such file");
        // What is wrong is thrown, and said once.
        var quiet = new EnvironmentCreationOptions { logLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL };
        OrtEnv.CreateInstanceWithOptions(ref quiet);
        detector = new Detector(arguments.Model, arguments.Threads);
        if (arguments.Maps.Length > 0) Directory.CreateDirectory(Path.GetDirectoryName(arguments.Maps[0])!);
    }
    catch (Exception error) when (error is InvalidDataException || error is IOException ||
        error is UnauthorizedAccessException || error is OnnxRuntimeException)
    {
        string said = error is OnnxRuntimeException
            ? $"is no whole ONNX file that ONNX Runtime {Runtime()} takes ({error.Message})"
            : error.Message;
        Console.Error.Write($"error: {arguments.Model}: {OneLine(said)}\n");
        return 1;
    }
    using var closing = detector;
    using var stdout = Console.OpenStandardOutput();
    int anomalous = 0, unjudged = 0;
    List<double> reading = new(), judging = new();
    for (int i = 0; i < arguments.Photos.Length; ++i)
    {
        using var line = new MemoryStream();
        var readable = new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };
        using (var json = new Utf8JsonWriter(line, readable))
        {
            json.WriteStartObject();
            json.WriteString("path", arguments.Photos[i]);
            try
            {
                var clock = Stopwatch.StartNew();
                Photo photo = Photo.Read(arguments.Photos[i], detector.Preprocess);
                double read = clock.Elapsed.TotalMilliseconds;
                Verdict verdict = detector.Judge(photo.Rgb, photo.Height, photo.Width);
                judging.Add(clock.Elapsed.TotalMilliseconds - read);
                reading.Add(read);
                anomalous += verdict.IsAnomalous ? 1 : 0;
                json.WriteString("decision", verdict.IsAnomalous ? "anomaly" : "ok");
                if (float.IsFinite(verdict.Score)) json.WriteNumber("score", verdict.Score);
                else json.WriteNull("score");
                json.WriteNumber("threshold", detector.Threshold);
                json.WriteNumber("percentile", verdict.Percentile);
                // Last: a map that cannot be written takes nothing from the verdict.
                if (arguments.Maps.Length > 0)
                {
                    Draw(photo, verdict, detector.Threshold, detector.Preprocess.Seen(photo.Height, photo.Width));
                    Png.Write(arguments.Maps[i], photo);
                    json.WriteString("map", arguments.Maps[i]);
                }
            }
            catch (Exception error) when (error is InvalidDataException || error is IOException ||
                error is UnauthorizedAccessException || error is OnnxRuntimeException ||
                error is OutOfMemoryException)
            {
                ++unjudged;
                json.WriteString("error", OneLine(error.Message));
            }
            json.WriteEndObject();
        }
        line.WriteByte((byte)'\n');
        stdout.Write(line.ToArray());
        stdout.Flush();
    }
    if (judging.Count > 0)
    {
        Console.Error.Write($"{judging.Count} judged by ONNX Runtime {Runtime()}, median: read and decoded in " +
            $"{Summary(reading)}, judged in {Summary(judging)}\n");
    }
    return anomalous > 0 ? 3 : unjudged > 0 ? 1 : 0;
}

// The photo, and over it where the score map passes half of the threshold: yellow to red at 1.5
// times the threshold. `seen` is what of the photo the map covers.
static void Draw(Photo photo, Verdict verdict, double threshold, Box seen)
{
    int rows = verdict.MapHeight, columns = verdict.MapWidth;
    double At(int row, int column) =>
        verdict.Map[Math.Clamp(row, 0, rows - 1) * columns + Math.Clamp(column, 0, columns - 1)];

    for (int y = 0; y < photo.Height; ++y)
    {
        for (int x = 0; x < photo.Width; ++x)
        {
            // Bilinear between the centres of the map's pixels.
            double u = (x + 0.5 - seen.Left) / (seen.Right - seen.Left) * columns;
            double v = (y + 0.5 - seen.Top) / (seen.Bottom - seen.Top) * rows;
            if (u < 0 || v < 0 || u > columns || v > rows) continue;
            int column = (int)Math.Floor(u - 0.5), row = (int)Math.Floor(v - 0.5);
            double across = u - 0.5 - column, down = v - 0.5 - row;
            double score =
                (1 - down) * ((1 - across) * At(row, column) + across * At(row, column + 1)) +
                down * ((1 - across) * At(row + 1, column) + across * At(row + 1, column + 1));
            double share = score / threshold - 0.5;
            if (!(share > 0)) continue; // nor where it is no number
            double strength = Math.Min(share, 1.0), opacity = 0.75 * strength;
            Span<byte> pixel = photo.Rgb.AsSpan(3 * (y * photo.Width + x), 3);
            pixel[0] = Blend(pixel[0], 255, opacity);
            pixel[1] = Blend(pixel[1], 220 * (1 - strength), opacity);
            pixel[2] = Blend(pixel[2], 0, opacity);
        }
    }
}

static byte Blend(byte below, double above, double opacity) =>
    (byte)Math.Round(below + opacity * (above - below), MidpointRounding.AwayFromZero);

static string Runtime() => OrtEnv.Instance().GetVersionString();

// "1.2 ms (at most 3.4)", the lower of the middle two.
static string Summary(List<double> times)
{
    times.Sort();
    return FormattableString.Invariant($"{times[(times.Count - 1) / 2]:F1} ms (at most {times[^1]:F1})");
}

static string OneLine(string text) => text.Replace("\r", "").Replace('\n', ' ');

internal sealed class UsageException : Exception
{
    internal UsageException(string message)
        : base(message)
    {
    }
}

internal sealed class Arguments
{
    internal Arguments(string[] words)
    {
        var files = new List<string>();
        string? folder = null;
        for (int i = 0; i < words.Length; ++i)
        {
            string word = words[i];
            if (word == "--maps" || word == "--threads")
            {
                if (++i == words.Length) throw new UsageException(word + " needs a value");
                if (word == "--maps") folder = words[i];
                else Threads = ThreadsOf(words[i]);
            }
            else if (word == "--") // what follows are files, whatever they are called
            {
                files.AddRange(words.Skip(i + 1));
                break;
            }
            else if (word.Length > 1 && word[0] == '-')
            {
                throw new UsageException("there is no option " + word);
            }
            else
            {
                files.Add(word);
            }
        }
        if (folder == "") throw new UsageException("the folder of --maps is empty: name one");
        if (files.Contains("")) throw new UsageException("the name of a file is empty");
        if (files.Count < 2) throw new UsageException("a padim.onnx and one photo at least are needed");
        Model = files[0];
        Photos = files.Skip(1).ToArray();
        Maps = folder is null ? Array.Empty<string>() : MapsIn(folder, files);
    }

    internal string Model { get; }

    internal string[] Photos { get; }

    // Where that of each photo goes; none if none are wanted.
    internal string[] Maps { get; }

    internal int Threads { get; }

    private static int ThreadsOf(string text)
    {
        if (int.TryParse(text, out int count) && count >= 1 && count <= 1024) return count;
        throw new UsageException($"--threads {text}: a number from 1 to 1024 is needed");
    }

    private string[] MapsIn(string folder, List<string> files)
    {
        var maps = new List<string>();
        foreach (string photo in Photos)
        {
            string map = Path.Combine(folder, Path.GetFileNameWithoutExtension(photo) + ".png");
            // Not told apart by case: some file systems do not.
            int other = maps.FindIndex(one => one.Equals(map, StringComparison.OrdinalIgnoreCase));
            if (other >= 0)
            {
                throw new UsageException(
                    $"the maps of {Photos[other]} and {photo} would both be {map}: judge them in two calls");
            }
            maps.Add(map);
        }
        ILookup<long, string>? inputs = null;
        foreach (string map in maps.Where(File.Exists))
        {
            inputs ??= files.ToLookup(LengthOf);
            if (inputs[LengthOf(map)].FirstOrDefault(file => IsSame(file, map)) is string taken)
            {
                throw new UsageException($"--maps would write over {taken}: name another folder");
            }
        }
        return maps.ToArray();
    }

    // Whether two names lead to one file, through whatever links, or to a copy of it: .NET tells of
    // links in a name's last part at most, and of none that are hard, so what they hold is compared.
    private static bool IsSame(string left, string right)
    {
        try
        {
            using FileStream one = File.OpenRead(left), two = File.OpenRead(right);
            for (int value = 0; value >= 0;)
            {
                value = one.ReadByte(); // of a buffer
                if (value != two.ReadByte()) return false;
            }
            return true;
        }
        catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
        {
            return Path.GetFullPath(left) == Path.GetFullPath(right);
        }
    }

    // Of what a name leads to; -1 if it cannot be read, or is none that has one.
    private static long LengthOf(string file)
    {
        try
        {
            using FileStream stream = File.OpenRead(file);
            return stream.CanSeek ? stream.Length : -1;
        }
        catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
        {
            return -1;
        }
    }
}
