# frozen_string_literal: true

# What a GitLab of 2026 does before its API: requests whose body is or may be JSON are authenticated before the body is
# read, and the body is bounded. Forms are not affected.
class JsonValidation
  PREFIX = '/api/v4/internal/'
  SHELL = /\A(allowed|lfs_authenticate|two_factor_\w+|personal_access_token|pre_receive|post_receive)\z/
  KAS = %r{\Akubernetes/}

  # GitLab's limits for the internal API, which are for POST alone, and those for all other requests.
  LIMITS = { bytes: 10 * 1024 * 1024, elements: nil }.freeze
  OTHER_LIMITS = { bytes: nil, elements: 100_000 }.freeze
  MAX_DEPTH = 32
  MAX_ITEMS = 50_000
  MAX_DIGITS = 1000

  TooLarge = Class.new(StandardError)

  def initialize(app)
    @app = app
  end

  def call(env)
    return @app.call(env) unless applies_to?(env)

    request = Rack::Request.new(env)
    if request.get?
      drop_body(env)
    else
      return refuse(401, 'Unauthorized') unless authenticated?(env)

      error = error_in(request)
      return refuse(400, error) if error
    end
    limited(request) || @app.call(env)
  end

  private

  def applies_to?(env)
    media_type = Rack::Request.new(env).media_type
    ENV['RAILS_ERA'] == 'today' && env['PATH_INFO'].start_with?(PREFIX) && [nil, '', 'application/json'].include?(media_type)
  end

  def drop_body(env)
    env['rack.input'] = StringIO.new('{}')
    env['CONTENT_LENGTH'] = '2'
  end

  def authenticated?(env)
    return false unless %w[POST PUT PATCH DELETE].include?(env['REQUEST_METHOD'])

    case env['PATH_INFO'].delete_prefix(PREFIX)
    when SHELL then Authentication::Shell.ok?({}, { Authentication::Shell::TOKEN_HEADER => env['HTTP_GITLAB_SHELL_API_REQUEST'] })
    when KAS then Authentication::Kas.ok?({ Authentication::Kas::TOKEN_HEADER => env['HTTP_GITLAB_KAS_API_REQUEST'] })
    end
  end

  def error_in(request)
    limits = request.post? ? LIMITS : OTHER_LIMITS
    text = request.body.read.to_s
    request.body.rewind
    return 'JSON body too large' if limits[:bytes]&.<(text.bytesize)
    return if text.empty?
    return 'Invalid JSON format' if text.match?(/\d{#{MAX_DIGITS + 1}}/)

    elements = count(JSON.parse(text, max_nesting: MAX_DEPTH))
    limits[:elements]&.<(elements) ? 'Too many total parameters' : nil
  rescue TooLarge => error
    error.message
  rescue JSON::NestingError
    'Parameters nested too deeply'
  rescue JSON::ParserError
    'Invalid JSON format'
  end

  # A pair counts twice, as key and as value.
  def count(value)
    case value
    when Hash
      raise TooLarge, 'Hash parameter too large' if value.size > MAX_ITEMS

      value.sum { |_, item| 2 + count(item) }
    when Array
      raise TooLarge, 'Array parameter too large' if value.size > MAX_ITEMS

      value.sum { |item| 1 + count(item) }
    else 0
    end
  end

  # Workhorse remembers that a caller of `allowed` got a 429, and answers its next requests itself, in plain text
  # without a content type.
  def limited(request)
    return unless request.query_string.include?('outcome%2Flimited')

    [429, { 'Retry-After' => '60' }, ["Too Many Requests\n"]]
  end

  def refuse(status, error)
    [status, { 'Content-Type' => 'application/json' }, [{ error: error }.to_json]]
  end
end
