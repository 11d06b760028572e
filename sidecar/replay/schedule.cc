#include "sidecar/replay/schedule.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "program/flags.h"

namespace trafficmirror::replay {
namespace {

using std::chrono::nanoseconds;

constexpr double slowest = 0.01;
constexpr double fastest = 1000;
// Further ahead than this nothing is due: a capture whose times jump by decades has wrong ones.
constexpr double longest_wait_seconds = 1e9;

// Packets of merged captures, or from several queues, stand only about in their order.
constexpr std::chrono::seconds most_disorder(1);

// Takes numbers of a fixed width, and what stands between them, off the front of a text.
class Fields {
 public:
  explicit Fields(std::string_view text) : rest_(text) {}

  int number(size_t digits, int least, int most) {
    const std::string_view field = rest_.substr(0, digits);
    int value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    if (field.size() != digits || error != std::errc() || end != field.data() + digits ||
        field[0] == '-' || value < least || value > most)
      failed_ = true;
    rest_.remove_prefix(field.size());
    return value;
  }
  char one_of(std::string_view characters) {
    if (rest_.empty() || characters.find(rest_[0]) == std::string_view::npos) {
      failed_ = true;
      return '\0';
    }
    const char taken = rest_[0];
    rest_.remove_prefix(1);
    return taken;
  }
  // Behind the seconds.
  nanoseconds fraction() {
    nanoseconds value{0};
    if (!rest_.starts_with('.')) return value;
    rest_.remove_prefix(1);
    failed_ = failed_ || rest_.empty() || rest_[0] < '0' || rest_[0] > '9';
    for (nanoseconds unit(100'000'000); !rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9';
         unit /= 10) {
      value += unit * (rest_[0] - '0');
      rest_.remove_prefix(1);
    }
    return value;
  }
  bool done() const { return !failed_ && rest_.empty(); }
  bool failed() const { return failed_; }

 private:
  std::string_view rest_;
  bool failed_ = false;
};

std::optional<nanoseconds> parse_time(std::string_view text) {
  using namespace std::chrono;
  Fields fields(text);
  const int y = fields.number(4, 1970, 2200);  // all that nanoseconds in 64 bits reach
  fields.one_of("-");
  const int m = fields.number(2, 1, 12);
  fields.one_of("-");
  const int d = fields.number(2, 1, 31);
  fields.one_of("Tt ");
  const int hour = fields.number(2, 0, 23);
  fields.one_of(":");
  const int minute = fields.number(2, 0, 59);
  fields.one_of(":");
  const int second = fields.number(2, 0, 60);
  const nanoseconds fraction = fields.fraction();
  const char zone = fields.one_of("Zz+-");
  minutes offset{0};
  if (zone == '+' || zone == '-') {
    offset = hours(fields.number(2, 0, 23));
    fields.one_of(":");
    offset += minutes(fields.number(2, 0, 59));
    if (zone == '-') offset = -offset;
  }
  const year_month_day date = year(y) / m / d;
  if (!fields.done() || !date.ok()) return std::nullopt;
  return sys_days(date).time_since_epoch() + hours(hour) + minutes(minute) + seconds(second) +
         fraction - offset;
}

}  // namespace

std::optional<Moment> parse_moment(std::string_view text) {
  if (const auto offset = program::parse_duration(text)) return Moment{true, *offset};
  if (const auto time = parse_time(text)) return Moment{false, *time};
  return std::nullopt;
}

std::optional<double> parse_speed(std::string_view text) {
  if (text == "max") return max_speed;
  double value = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value, std::chars_format::fixed);
  // Written so that a NaN is none.
  if (error != std::errc() || !(value >= slowest && value <= fastest)) return std::nullopt;
  const std::string_view unit(end, static_cast<size_t>(last - end));
  if (!unit.empty() && unit != "x") return std::nullopt;
  return value;
}

Schedule::Place Schedule::place(nanoseconds captured) {
  if (!start_) start_ = captured;
  const auto time_of = [&](const Moment& moment) {
    return moment.from_start ? *start_ + moment.time : moment.time;
  };
  if (options_.from && captured < time_of(*options_.from)) return Place::before;
  if (!options_.until || captured < time_of(*options_.until)) return Place::within;
  return captured < time_of(*options_.until) + most_disorder ? Place::behind : Place::far_behind;
}

nanoseconds Schedule::position(nanoseconds captured) {
  if (!first_) first_ = captured;
  return captured - *first_;
}

Schedule::Clock::time_point Schedule::due(nanoseconds captured) {
  using Seconds = std::chrono::duration<double>;
  const Seconds at =
      std::chrono::duration_cast<Seconds>(earlier_rounds_ + position(captured)) / options_.speed;
  return begun_at_ +
         std::chrono::duration_cast<Clock::duration>(std::min(at, Seconds(longest_wait_seconds)));
}

session::Time Schedule::pass(nanoseconds captured) {
  furthest_ = std::max(furthest_, position(captured));
  return session::Time(std::chrono::duration_cast<session::Duration>(passed()));
}

void Schedule::end_round() {
  earlier_rounds_ += std::exchange(furthest_, nanoseconds(0));
  start_.reset();
  first_.reset();
}

bool nothing_within(const Schedule::Options& options) {
  const auto& [speed, from, until] = options;
  return from && until && from->from_start == until->from_start && from->time >= until->time;
}

}  // namespace trafficmirror::replay
