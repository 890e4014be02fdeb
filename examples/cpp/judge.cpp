// Judge photos: one JSON line each, and how long it took on stderr.
//
//     padim-judge [--maps FOLDER] [--threads N] padim.onnx PHOTO...
//
// padim.onnx is fitted with --frame-input. Exit code 3 if a photo is anomalous, else 1 if one could
// not be judged, as `padim-edge run --fail-on-anomaly`; 1 for a model that cannot be opened, 2 for
// wrong arguments.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "detector.hpp"
#include "photo.hpp"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kUsage =
    "usage: padim-judge [--maps FOLDER] [--threads N] padim.onnx PHOTO...\n"
    "\n"
    "  --maps FOLDER   write each photo with its heat map there, as PNG\n"
    "  --threads N     of the runtime; all cores unless said\n";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  fs::path model;
  std::vector<fs::path> photos;
  std::vector<fs::path> maps; // where that of each photo goes; none if none are wanted
  int threads = 0;
};

int threads_of(const std::string& text) {
  int count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end != text.data() + text.size() || count < 1 || count > 1024) {
    throw UsageError("--threads " + text + ": a number from 1 to 1024 is needed");
  }
  return count;
}

Arguments parsed(const std::vector<std::string>& words) {
  Arguments made;
  std::vector<fs::path> files;
  std::optional<fs::path> folder;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--maps" || word == "--threads") {
      if (++i == words.size()) throw UsageError(word + " needs a value");
      if (word == "--maps") folder = words[i];
      else made.threads = threads_of(words[i]);
    } else if (word == "--") { // what follows are files, whatever they are called
      files.insert(files.end(), words.begin() + long(i) + 1, words.end());
      break;
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError("there is no option " + word);
    } else {
      files.emplace_back(word);
    }
  }
  if (folder && folder->empty()) throw UsageError("the folder of --maps is empty: name one");
  if (std::find(files.begin(), files.end(), fs::path()) != files.end()) {
    throw UsageError("the name of a file is empty");
  }
  if (files.size() < 2) throw UsageError("a padim.onnx and one photo at least are needed");
  made.model = files[0];
  made.photos.assign(files.begin() + 1, files.end());
  if (!folder) return made;
  std::map<fs::path, fs::path> taken;
  for (const auto& photo : made.photos) {
    const fs::path map = *folder / photo.stem().concat(".png");
    const auto [other, is_new] = taken.emplace(map, photo);
    if (!is_new) {
      throw UsageError("the maps of " + other->second.string() + " and " + photo.string() +
                       " would both be " + map.string() + ": judge them in two calls");
    }
    made.maps.push_back(map);
  }
  for (const auto& map : made.maps) {
    std::error_code ignored;
    for (const auto& photo : files) {
      if (fs::equivalent(map, photo, ignored)) {
        throw UsageError("--maps would write over " + photo.string() + ": name another folder");
      }
    }
  }
  return made;
}

// The photo, and over it where the score map passes half of the threshold: yellow to red at 1.5
// times the threshold. `seen` is what of the photo the map covers.
void draw(padim::Photo& photo, const padim::Verdict& verdict, double threshold, padim::Box seen) {
  const auto at = [&](int64_t row, int64_t column) {
    row = std::clamp<int64_t>(row, 0, verdict.map_height - 1);
    column = std::clamp<int64_t>(column, 0, verdict.map_width - 1);
    return double(verdict.map[size_t(row * verdict.map_width + column)]);
  };
  for (int64_t y = 0; y < photo.height; ++y) {
    for (int64_t x = 0; x < photo.width; ++x) {
      // Bilinear between the centres of the map's pixels.
      const double u =
          (double(x) + 0.5 - seen.left) / (seen.right - seen.left) * double(verdict.map_width);
      const double v =
          (double(y) + 0.5 - seen.top) / (seen.bottom - seen.top) * double(verdict.map_height);
      if (u < 0 || v < 0 || u > double(verdict.map_width) || v > double(verdict.map_height)) continue;
      const auto column = int64_t(std::floor(u - 0.5)), row = int64_t(std::floor(v - 0.5));
      const double across = u - 0.5 - double(column), down = v - 0.5 - double(row);
      const double score =
          (1 - down) * ((1 - across) * at(row, column) + across * at(row, column + 1)) +
          down * ((1 - across) * at(row + 1, column) + across * at(row + 1, column + 1));
      const double share = score / threshold - 0.5;
      if (!(share > 0)) continue; // nor where it is no number
      const double strength = std::min(share, 1.0), opacity = 0.75 * strength;
      const double colour[] = {255, 220 * (1 - strength), 0};
      uint8_t* pixel = &photo.rgb[size_t(3 * (y * photo.width + x))];
      for (int c = 0; c < 3; ++c) {
        pixel[c] = uint8_t(std::lround(pixel[c] + opacity * (colour[c] - pixel[c])));
      }
    }
  }
}

double milliseconds(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

// "1.2 ms (at most 3.4)", the lower of the middle two.
std::string summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  char text[64];
  std::snprintf(text, sizeof text, "%.1f ms (at most %.1f)", times[(times.size() - 1) / 2],
                times.back());
  return text;
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void say(const nlohmann::ordered_json& line) {
  // Names of files need not be UTF-8.
  const auto replace = nlohmann::ordered_json::error_handler_t::replace;
  std::puts(line.dump(-1, ' ', false, replace).c_str());
  std::fflush(stdout);
}

int judge(const Arguments& arguments) {
  std::optional<padim::Detector> detector;
  try {
    if (!fs::is_regular_file(arguments.model)) throw std::runtime_error("there is no such file");
    detector.emplace(arguments.model, arguments.threads);
    if (!arguments.maps.empty()) fs::create_directories(arguments.maps[0].parent_path());
  } catch (const Ort::Exception& error) {
    std::fprintf(stderr, "error: %s: is no whole ONNX file that ONNX Runtime %s takes (%s)\n",
                 arguments.model.string().c_str(), Ort::GetVersionString().c_str(),
                 one_line(error.what()).c_str());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s: %s\n", arguments.model.string().c_str(),
                 one_line(error.what()).c_str());
    return 1;
  }
  int anomalous = 0, unjudged = 0;
  std::vector<double> reading, judging;
  for (size_t i = 0; i < arguments.photos.size(); ++i) {
    nlohmann::ordered_json line{{"path", arguments.photos[i].string()}};
    try {
      const auto begun = Clock::now();
      padim::Photo photo = padim::read_photo(arguments.photos[i], detector->preprocess());
      const auto read = Clock::now();
      const auto verdict = detector->judge(photo.rgb.data(), photo.height, photo.width);
      judging.push_back(milliseconds(Clock::now() - read));
      reading.push_back(milliseconds(read - begun));
      line["decision"] = verdict.is_anomalous ? "anomaly" : "ok";
      line["score"] = verdict.score; // null if it is no number
      line["threshold"] = detector->threshold();
      line["percentile"] = verdict.percentile;
      anomalous += verdict.is_anomalous;
      if (!arguments.maps.empty()) {
        const auto seen = detector->preprocess().seen(photo.height, photo.width);
        draw(photo, verdict, detector->threshold(), seen);
        padim::write_png(arguments.maps[i], photo);
        line["map"] = arguments.maps[i].string();
      }
    } catch (const std::exception& error) {
      ++unjudged;
      line["error"] = one_line(error.what());
    }
    say(line);
  }
  if (!judging.empty()) {
    std::fprintf(stderr, "%zu judged by ONNX Runtime %s, median: read and decoded in %s, judged in %s\n",
                 judging.size(), Ort::GetVersionString().c_str(), summary(reading).c_str(),
                 summary(judging).c_str());
  }
  return anomalous ? 3 : unjudged ? 1 : 0;
}

} // namespace

int main(int count, char** words) {
  const std::vector<std::string> given(words + 1, words + count);
  if (std::find(given.begin(), given.end(), "--help") != given.end()) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return judge(parsed(given));
  } catch (const UsageError& error) {
    std::fprintf(stderr, "error: %s\n%s", error.what(), kUsage);
    return 2;
  }
}
