// A detector from a padim.onnx that was fitted with --frame-input: its graph takes frames as they
// are. All that an application needs; it knows of no files but that one.

using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;

namespace Padim;

/// <summary>`Judge` may be called from several threads at once.</summary>
public sealed class Detector : IDisposable
{
    private static readonly string[] Inputs = { "frame" };
    private static readonly string[] Outputs = { "score", "score_map" };

    private readonly InferenceSession session;
    private readonly RunOptions runOptions = new RunOptions();
    private readonly double[] goodScores; // ascending

    /// <param name="file">The padim.onnx.</param>
    /// <param name="threads">Of a run; 0 for all cores.</param>
    /// <exception cref="OnnxRuntimeException">It is no ONNX file that the runtime takes.</exception>
    /// <exception cref="InvalidDataException">It is no detector of this kind.</exception>
    public Detector(string file, int threads = 0)
    {
        using var options = new SessionOptions
        {
            IntraOpNumThreads = threads,
            LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL, // errors are thrown
        };
        session = new InferenceSession(file, options);
        try
        {
            (Threshold, goodScores, Preprocess) = Read(session.ModelMetadata.CustomMetadataMap);
            if (!session.InputMetadata.ContainsKey(Inputs[0]))
            {
                throw new InvalidDataException(
                    "this file takes prepared images: fit it with padim-edge fit --frame-input");
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Scores above it are anomalies.</summary>
    public double Threshold { get; }

    /// <summary>What the graph does with a frame.</summary>
    public Preprocess Preprocess { get; }

    /// <param name="rgb">height * width * 3 values, row by row without gaps.</param>
    /// <param name="height">Of the frame; any.</param>
    /// <param name="width">Of the frame; any.</param>
    /// <exception cref="OnnxRuntimeException">The runtime failed.</exception>
    public Verdict Judge(Memory<byte> rgb, int height, int width)
    {
        using var frame = OrtValue.CreateTensorValueFromMemory(
            OrtMemoryInfo.DefaultInstance, rgb, new long[] { 1, height, width, 3 });
        using var results = session.Run(runOptions, Inputs, new[] { frame }, Outputs);
        float[] map = results[1].GetTensorDataAsSpan<float>().ToArray();
        // ONNX Runtime's largest of NaN and numbers is a number.
        float score = map.All(float.IsFinite) ? results[0].GetTensorDataAsSpan<float>()[0] : float.NaN;
        long[] shape = results[1].GetTensorTypeAndShape().Shape;
        return new Verdict(
            score,
            !(score <= Threshold), // a score that is not a number is no proof of a good part
            100.0 * goodScores.Count(good => good <= score) / goodScores.Length,
            map,
            (int)shape[1],
            (int)shape[2]);
    }

    public void Dispose()
    {
        runOptions.Dispose();
        session.Dispose();
    }

    private static (double Threshold, double[] GoodScores, Preprocess Preprocess) Read(
        IReadOnlyDictionary<string, string> metadata)
    {
        JsonElement Value(string key)
        {
            using var document = JsonDocument.Parse(metadata["padim_edge." + key]);
            return document.RootElement.Clone();
        }

        if (!metadata.ContainsKey("padim_edge.threshold"))
        {
            throw new InvalidDataException("this file is no detector: fit one with padim-edge fit");
        }
        try
        {
            int format = Value("format").GetInt32();
            if (format != 1 && format != 2)
            {
                throw new InvalidDataException(
                    $"its format is version {format}, this program reads 1 and 2: take the example " +
                    "of the padim-edge that made the file");
            }
            double[] good = Value("good_scores").EnumerateArray().Select(one => one.GetDouble()).ToArray();
            if (good.Length == 0) throw new FormatException("there are no good_scores");
            return (Value("threshold").GetDouble(), good, new Preprocess(Value("preprocess")));
        }
        catch (Exception error) when (error is JsonException || error is KeyNotFoundException ||
            error is InvalidOperationException || error is FormatException ||
            error is IndexOutOfRangeException)
        {
            throw new InvalidDataException($"its metadata is damaged ({error.Message}): fit it again");
        }
    }
}

/// <summary>What a detector says of a frame.</summary>
public sealed class Verdict
{
    internal Verdict(
        float score, bool isAnomalous, double percentile, float[] map, int mapHeight, int mapWidth)
    {
        Score = score;
        IsAnomalous = isAnomalous;
        Percentile = percentile;
        Map = map;
        MapHeight = mapHeight;
        MapWidth = mapWidth;
    }

    /// <summary>NaN, and anomalous, if a value of the map is not finite.</summary>
    public float Score { get; }

    public bool IsAnomalous { get; }

    /// <summary>Per cent of the good images of the fit that score no higher.</summary>
    public double Percentile { get; }

    /// <summary>MapHeight rows of MapWidth scores.</summary>
    public float[] Map { get; }

    public int MapHeight { get; }

    public int MapWidth { get; }
}

/// <summary>Pixels of a frame, [Left, Right) x [Top, Bottom).</summary>
public readonly struct Box
{
    internal Box(double left, double top, double right, double bottom) =>
        (Left, Top, Right, Bottom) = (left, top, right, bottom);

    public double Left { get; }

    public double Top { get; }

    public double Right { get; }

    public double Bottom { get; }
}

/// <summary>What the graph does with a frame: for those who want to know beforehand.</summary>
public sealed class Preprocess
{
    private readonly int height, width; // of what it sees
    private readonly int resizeHeight, resizeWidth; // to which a frame is resized; 0: by `side`
    private readonly int side; // that the shorter side gets; 0: as above
    private readonly bool reduces; // whether JPEG files may be decoded smaller

    internal Preprocess(JsonElement said)
    {
        height = said.GetProperty("size")[0].GetInt32();
        width = said.GetProperty("size")[1].GetInt32();
        JsonElement resize = said.GetProperty("resize");
        if (resize.ValueKind == JsonValueKind.Array)
        {
            resizeHeight = resize[0].GetInt32();
            resizeWidth = resize[1].GetInt32();
        }
        else
        {
            side = resize.GetInt32();
        }
        if (height <= 0 || width <= 0) throw new FormatException("size is not above 0");
        if (side <= 0 && (resizeHeight <= 0 || resizeWidth <= 0))
        {
            throw new FormatException("resize is not above 0");
        }
        reduces = said.TryGetProperty("reduce", out JsonElement may) && may.GetBoolean();
        if (said.TryGetProperty("bit_depth", out JsonElement depth) && depth.ValueKind != JsonValueKind.Null)
        {
            BitDepth = depth.GetInt32();
            if (BitDepth < 1 || BitDepth > 16) throw new FormatException("bit_depth is not from 1 to 16");
        }
    }

    /// <summary>Of grey values of 16 bits, as the camera fills them.</summary>
    public int BitDepth { get; } = 16;

    /// <summary>By how much padim-edge decodes a JPEG of this size smaller: 1, 2, 4 or 8.</summary>
    public int Shrink(int frameHeight, int frameWidth)
    {
        if (!reduces) return 1;
        var (rows, columns) = Resized(frameHeight, frameWidth);
        long most = Math.Min(frameHeight / rows, frameWidth / columns);
        foreach (int factor in new[] { 8, 4, 2 })
        {
            if (factor <= most && frameHeight % factor == 0 && frameWidth % factor == 0) return factor;
        }
        return 1;
    }

    /// <summary>The part of a frame that the graph sees, and its score map covers.</summary>
    public Box Seen(int frameHeight, int frameWidth)
    {
        var (rows, columns) = Resized(frameHeight, frameWidth);
        // Halves to even, as torchvision's crop is rounded.
        double top = Math.Round((rows - height) / 2.0), left = Math.Round((columns - width) / 2.0);
        double across = (double)frameWidth / columns, down = (double)frameHeight / rows;
        return new Box(left * across, top * down, (left + width) * across, (top + height) * down);
    }

    private (long Rows, long Columns) Resized(long frameHeight, long frameWidth)
    {
        if (side == 0) return (resizeHeight, resizeWidth);
        long longer = side * Math.Max(frameHeight, frameWidth) / Math.Min(frameHeight, frameWidth);
        return frameHeight <= frameWidth ? (side, longer) : (longer, side);
    }
}
